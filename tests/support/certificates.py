"""A certificate authority for one test, made with the openssl command."""

from __future__ import annotations

import subprocess
from pathlib import Path


class Authority:
    """Issues certificates for the loopback address.

    Args:
        directory: where keys and certificates go.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.certificate = directory / "ca.pem"
        self._key = directory / "ca.key"
        new = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=accrete tests"]
        self._openssl(*new, "-keyout", str(self._key), "-out", str(self.certificate))

    def issue(self, name: str, password: str | None = None) -> tuple[Path, Path]:
        """Return the files of a new certificate and its key, which is encrypted if there is a password."""
        key, request = self._directory / f"{name}.key", self._directory / f"{name}.csr"
        certificate, names = self._directory / f"{name}.pem", self._directory / f"{name}.ext"
        names.write_text("subjectAltName=IP:127.0.0.1\n")
        secrecy = ["-nodes"] if password is None else ["-passout", f"pass:{password}"]
        new = ["req", "-newkey", "rsa:2048", "-subj", f"/CN={name}", *secrecy]
        self._openssl(*new, "-keyout", str(key), "-out", str(request))
        sign = ["x509", "-req", "-days", "2", "-in", str(request), "-CAcreateserial", "-extfile", str(names)]
        self._openssl(*sign, "-CA", str(self.certificate), "-CAkey", str(self._key), "-out", str(certificate))
        return certificate, key

    def _openssl(self, *arguments: str) -> None:
        done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
