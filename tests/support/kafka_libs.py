"""Where the test broker's jars come from."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from pathlib import Path

from platformdirs import user_cache_path

POM = Path(__file__).parent / "kafka" / "pom.xml"


class NoBroker(Exception):
    """No broker can be had here; the message says what is missing."""


def find_classpath() -> str:
    """Return Java's class path of an Apache Kafka, fetching it once with Maven if need be.

    Raises:
        NoBroker: there is no Java 17, or neither `KAFKA_HOME` nor Maven.
    """
    java_version()
    home = os.environ.get("KAFKA_HOME")
    if home:
        libs = Path(home) / "libs"
        if not any(libs.glob("kafka_*.jar")):
            raise NoBroker(f"KAFKA_HOME={home}: no libs/kafka_*.jar there; unpack a Kafka distribution")
        return f"{libs}/*"
    return f"{_fetched_libs()}/*"


def java_version() -> int:
    """Return Java's major version.

    Raises:
        NoBroker: Java is absent or older than 17.
    """
    if shutil.which("java") is None:
        raise NoBroker("java is not installed; Apache Kafka 4 needs Java 17")
    shown = subprocess.run(["java", "-version"], capture_output=True, text=True, check=True).stderr
    found = re.search(r'version "(\d+)', shown)
    if found is None or int(found.group(1)) < 17:
        raise NoBroker(f"Apache Kafka 4 needs Java 17, found: {shown.splitlines()[0]}")
    return int(found.group(1))


def _fetched_libs() -> Path:
    version: str = re.findall(r"<version>([\d.]+)</version>", POM.read_text())[1]
    cache = user_cache_path("accrete") / "test-kafka"
    libs = cache / version
    cache.mkdir(parents=True, exist_ok=True)
    # Test runs beside each other must not fetch into one directory at once.
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not libs.is_dir():
            if shutil.which("mvn") is None:
                raise NoBroker(
                    "no ACCRETE_TEST_KAFKA, no KAFKA_HOME, and Maven is not installed to fetch Apache Kafka"
                )
            partial = cache / f"{version}.partial"
            command = ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies"]
            command += [f"-DoutputDirectory={partial}", "-DincludeScope=runtime"]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
            if done.returncode != 0:
                shutil.rmtree(partial, ignore_errors=True)
                raise NoBroker(
                    f"Maven cannot fetch Apache Kafka: {(done.stdout + done.stderr).strip()[-500:]}"
                )
            partial.rename(libs)
    return libs
