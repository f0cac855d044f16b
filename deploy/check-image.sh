#!/usr/bin/env bash
# Build the image from deploy/Dockerfile with buildah, start it as its own user and wait for /readyz.
# Neither a container engine nor an image hub is needed: a Debian made by debootstrap stands in for the base.
#
# Usage: deploy/check-image.sh            build, start, poll, stop
#        deploy/check-image.sh --clean    remove the rootfs and the image store it keeps between runs
# Environment:
#   BASE           base image to pull instead of the stand-in
#   TORCH_BACKEND  uv's name of a torch build, as cpu; empty (the default here): what the ordinary index has
#   READY_SECONDS  how long the first start may take, weights included (default 300)
set -euo pipefail
cd "$(dirname "$0")/.."

kept=${XDG_CACHE_HOME:-$HOME/.cache}/accrete-image
certificates=/etc/ssl/certs/ca-certificates.crt

unmount() { # buildah leaves its store mounted on itself
    ! mountpoint --quiet "$kept/store/overlay" || umount "$kept/store/overlay"
}

if [[ ${1-} == --clean ]]; then
    unmount
    rm -rf "$kept"
    exit
fi

skip() {
    echo "skipped: $*"
    exit 0
}
[[ $(id -u) == 0 ]] || skip "the build needs root"
command -v buildah >/dev/null || skip "buildah is not installed (Debian: apt-get install buildah crun debootstrap)"
[[ -n ${BASE-} ]] || command -v debootstrap >/dev/null || skip "debootstrap is not installed, and BASE names no image"

mkdir -p "$kept"
storage=(--storage-driver overlay --root "$kept/store" --runroot "$kept/run")
image() { buildah "${storage[@]}" "$@"; }
step() { printf '== %3ds  %s\n' "$SECONDS" "$*"; }

# The package indexes and certificates this machine is set up for go into the stand-in, never into the Dockerfile.
make_base() {
    if [[ ! -d $kept/rootfs ]]; then
        step "making a Debian"
        rm -rf "$kept/rootfs.part"
        debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$kept/rootfs.part" \
            >"$kept/debootstrap.log" || { tail -n 20 "$kept/debootstrap.log" >&2; return 1; }
        mv "$kept/rootfs.part" "$kept/rootfs"
    fi
    step "importing it as $1"
    local container name
    container=$(image from scratch)
    image copy --quiet "$container" "$kept/rootfs" / >/dev/null
    if [[ -f $certificates ]]; then
        image copy --quiet "$container" "$certificates" "$certificates" >/dev/null
        image config --env SSL_CERT_FILE=$certificates --env PIP_CERT=$certificates "$container"
    fi
    for name in PIP_INDEX_URL UV_DEFAULT_INDEX UV_INDEX_URL; do
        [[ -z ${!name-} ]] || image config --env "$name=${!name}" "$container"
    done
    image commit --quiet --rm "$container" "$1" >/dev/null
}

base=${BASE-localhost/accrete-base}
if [[ -z ${BASE-} ]] && ! image inspect --type image "$base" >/dev/null 2>&1; then
    make_base "$base"
fi

step "building"
image build --isolation chroot --network host --format docker --layers \
    --build-arg "BASE=$base" --build-arg "TORCH_BACKEND=${TORCH_BACKEND-}" \
    --file deploy/Dockerfile --tag localhost/accrete .
image rmi --prune >/dev/null # what an earlier build left: gigabytes

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
configured() { # FIELD of the image's configuration, one item a line
    image inspect --type image --format "{{range .Docker.Config.$1}}{{println .}}{{end}}" localhost/accrete | sed '/^$/d'
}

container=$(image from localhost/accrete)
log=$(mktemp)
server=
stop() { # the whole process group; returns 1 if SIGTERM was not enough
    local deadline=$((SECONDS + 60))
    [[ -n $server ]] || return 0
    kill -TERM -- "-$server" 2>/dev/null || true
    while kill -0 -- "-$server" 2>/dev/null; do
        ((SECONDS < deadline)) || { kill -KILL -- "-$server"; return 1; }
        sleep 0.2
    done
    server=
}
finish() {
    status=$?
    stop || true
    [[ $status == 0 ]] || cat "$log" >&2
    image rm "$container" >/dev/null 2>&1 || true
    unmount || true
    rm -f "$log"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

port=$(free_port)
token=$(python3 -c 'import secrets; print(secrets.token_hex(16))')
run() {
    image run --isolation chroot --network host \
        --env "ACCRETE_SERVING__PORT=$port" --env "ACCRETE_SERVING__TOKEN=$token" "$container" -- "$@"
}

user=$(run id -u)
[[ $user != 0 ]] || { echo "the image runs as root" >&2; exit 1; }

mapfile -t command < <(configured Entrypoint; configured Cmd)
step "starting as user $user: ${command[*]}"
set -m # a process group of its own, so that the stop reaches the server inside
run "${command[@]}" >"$log" 2>&1 &
server=$!
set +m

deadline=$((SECONDS + ${READY_SECONDS:-300}))
until [[ $(curl --silent --output /dev/null --write-out '%{http_code}' "http://127.0.0.1:$port/readyz") == 200 ]]; do
    kill -0 "$server" 2>/dev/null || { echo "the server ended before it was ready" >&2; exit 1; }
    ((SECONDS < deadline)) || { echo "/readyz did not answer 200 in ${READY_SECONDS:-300} s" >&2; exit 1; }
    sleep 1
done
step "/readyz answered 200"

mapfile -t health < <(configured Healthcheck.Test)
[[ ${health[0]-} == CMD ]] || { echo "the image has no HEALTHCHECK" >&2; exit 1; }
run "${health[@]:1}" || { echo "the image's HEALTHCHECK fails beside a ready server" >&2; exit 1; }
step "the image's HEALTHCHECK agrees"
stop || { echo "the server did not stop within 60 s of SIGTERM" >&2; exit 1; }
step "stopped"
