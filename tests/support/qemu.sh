# For the scripts that emulate a machine: source it.
. "$(dirname "${BASH_SOURCE[0]}")/debian.sh"

# want_qemu WORK: leaves in QEMU an emulator of x86-64 machines: the one that QEMU names already, the system's, or
# one of Debian's or Ubuntu's packages in WORK/qemu.
want_qemu() {
    local work
    work=$(realpath -m "$1/qemu")
    QEMU=${QEMU:-$(command -v qemu-system-x86_64 || true)}
    if [ -n "$QEMU" ]; then
        return
    fi
    QEMU=$work/run
    if [ -x "$QEMU" ]; then
        return
    fi
    if ! unpack_package "$work" qemu-system-x86; then
        echo "no QEMU: QEMU is to name a qemu-system-x86_64" >&2
        return 1
    fi
    # Firmware of several packages, which are looked for in the folders of an installed one.
    start_unpacked "$QEMU" "$work/root/usr/bin/qemu-system-x86_64" -L "$work/root/usr/share/seabios" \
        -L "$work/root/usr/share/qemu" -L "$work/root/usr/lib/ipxe/qemu"
}
