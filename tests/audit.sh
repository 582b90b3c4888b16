#!/usr/bin/env bash
# Audits what is depended on, by cargo-deny and deny.toml: licences, sources, double versions, and advisories of RustSec.
# The workspace is looked at with all features, and so is every package outside of it that has a lock file of its own.
#
# Usage: tests/audit.sh     (a minute, and ten more the first time, for building cargo-deny into target/audit)
#
# The advisories come from https://github.com/RustSec/advisory-db. Where that is not to be reached, ADVISORIES names a
# folder with a clone of it; with neither the rest is checked, and exit code 77 says that advisories were not.
set -euo pipefail
cd "$(dirname "$0")/.."
version=0.20.2
root=$PWD
deny=$root/target/audit/bin/cargo-deny

if [ "$("$deny" --version 2> /dev/null)" != "cargo-deny $version" ]; then
    # Runs for seconds: how fast it is does not matter, how long it takes to build does.
    CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=1 cargo install --quiet --locked \
        --version "$version" --root target/audit --target-dir target/audit/build cargo-deny
    rm -rf target/audit/build
fi

failed=() offline=()
look() {
    echo "== $*"
    "$deny" --log-level error --workspace --locked --config deny.toml --manifest-path "$1" "${offline[@]}" \
        check --hide-inclusion-graph "${@:2}" || failed+=("$*")
}

# What is built of this repository.
own=(Cargo.toml capi/Cargo.toml fuzz/Cargo.toml)
# Other people's programs that measurements are set beside: nothing of them is given away, whatever their licences.
peers=()
for lock in tests/*/Cargo.lock benches/*/Cargo.lock benches/*/*/Cargo.lock; do
    case $lock in
        benches/peers/*) peers+=("${lock%.lock}.toml") ;;
        *'*'*) ;;
        *) own+=("${lock%.lock}.toml") ;;
    esac
done
for manifest in "${own[@]}"; do
    look "$manifest" licenses bans sources
done
for manifest in "${peers[@]}"; do
    look "$manifest" sources
done

echo "== advisories"
if [ -n "${ADVISORIES:-}" ]; then
    GIT_CONFIG_KEY_0=url.$(realpath "$ADVISORIES").insteadOf
    export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0 GIT_CONFIG_VALUE_0=https://github.com/RustSec/advisory-db
fi
is_there=yes
timeout 300 "$deny" --config deny.toml fetch db || is_there=
if [ -n "$is_there" ]; then
    offline=(--offline)
    for manifest in "${own[@]}" "${peers[@]}"; do
        look "$manifest" advisories
    done
fi

if [ ${#failed[@]} -gt 0 ]; then
    printf 'refused: %s\n' "${failed[@]}" >&2
    exit 1
fi
if [ -z "$is_there" ]; then
    echo "licences, sources and versions are as deny.toml has them; ADVISORIES WERE NOT LOOKED AT: their database on" >&2
    echo "GitHub cannot be reached (ADVISORIES names a folder with a clone of it)" >&2
    exit 77
fi
echo "licences, sources, versions and advisories: nothing is refused"
