# For the scripts that build for a Cortex-M: source it.
. "$(dirname "${BASH_SOURCE[0]}")/debian.sh"

# want_thumb WORK TARGET...: leaves in CARGO_THUMB a cargo that builds for these targets, which are Cortex-M's: the one
# that CARGO_THUMB names already, this system's if its Rust has them (`rustup target add TARGET`), or one of Debian's
# packages in WORK/rust: a compiler that comes with the sources of `core`, which it builds on the way, and a linker.
want_thumb() {
    local work target has_all=yes
    work=$(realpath -m "$1/rust")
    shift
    if [ -n "${CARGO_THUMB:-}" ]; then
        return
    fi
    for target; do
        [ -d "$(rustc --print target-libdir --target "$target" 2> /dev/null)" ] || has_all=
    done
    if [ -n "$has_all" ]; then
        CARGO_THUMB=cargo
        return
    fi
    CARGO_THUMB=$work/run
    if [ -x "$CARGO_THUMB" ]; then
        return
    fi
    if ! unpack_package "$work" rustc-web cargo-web rust-web-src lld-22; then
        echo "no Rust for $*: rustup target add $*, or CARGO_THUMB is to name a cargo that has it" >&2
        return 1
    fi
    local usr=$work/root/usr linker=$work/root/usr/lib/llvm-22/bin/ld.lld
    {
        echo '#!/bin/sh'
        echo "export LD_LIBRARY_PATH=\"$LIBRARIES\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}\""
        # A stable compiler builds \`core\` only if told that it may.
        echo "export RUSTC_BOOTSTRAP=1 RUSTC=\"$usr/bin/rustc\""
        for target; do
            target=$(printf %s "$target" | tr 'a-z-' 'A-Z_')
            echo "export CARGO_TARGET_${target}_LINKER=\"$linker\""
        done
        echo "command=\$1"
        echo "shift"
        echo "exec \"$usr/bin/cargo\" \"\$command\" -Zbuild-std=core \"\$@\""
    } > "$CARGO_THUMB.tmp"
    chmod +x "$CARGO_THUMB.tmp"
    mv "$CARGO_THUMB.tmp" "$CARGO_THUMB"
}
