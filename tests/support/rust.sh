# For the scripts that build for other machines: source it.
. "$(dirname "${BASH_SOURCE[0]}")/debian.sh"

# want_rust WORK PACKAGE...: leaves in CARGO and RUSTC those of Debian, whose standard libraries for other machines
# are packages as well; in TOOLS the folder where they and the packages are unpacked, once for all calls with WORK; and
# in LIBRARIES where the libraries of their programs are. An error where they are not to be had, or are older than the
# project wants.
want_rust() {
    local work wanted found
    work=$(realpath -m "$1")
    shift
    TOOLS=$work/root CARGO=$work/cargo RUSTC=$work/rustc
    if [ ! -e "$work/unpacked" ]; then
        unpack_package "$work" rustc-web cargo-web "$@" || return 1
        touch "$work/unpacked"
    fi
    # Beside the compiler's: among the packages are libraries of other machines.
    LIBRARIES=$(find "$TOOLS/usr/lib" -name 'librustc_driver-*.so' -printf '%h\n' -quit)
    start_unpacked "$RUSTC" "$TOOLS/usr/bin/rustc" --sysroot "$TOOLS/usr" || return 1
    start_unpacked "$CARGO" "$TOOLS/usr/bin/cargo" || return 1
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    found=$("$RUSTC" --version | cut -d' ' -f2)
    if [ "$(printf '%s\n' "$wanted" "$found" | sort -V | head -1)" != "$wanted" ]; then
        echo "Rust of Debian's packages here is $found, and $wanted is needed" >&2
        return 1
    fi
}
