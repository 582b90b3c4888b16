# For the scripts that emulate a machine: source it.
. "$(dirname "${BASH_SOURCE[0]}")/debian.sh"

# want_qemu WORK: leaves in QEMU an emulator of x86-64 machines: the one that QEMU names already, the system's, or
# one of Debian's or Ubuntu's packages in WORK/qemu.
want_qemu() {
    # Firmware of several packages, which are looked for in the folders of an installed one.
    want_emulator QEMU "$1" qemu-system-x86_64 qemu-system-x86 usr/share/seabios usr/share/qemu usr/lib/ipxe/qemu
}

# want_qemu_arm WORK: the same in QEMU_ARM, of Arm's machines. Microcontrollers have no firmware.
want_qemu_arm() {
    want_emulator QEMU_ARM "$1" qemu-system-arm qemu-system-arm
}

# want_emulator VARIABLE WORK PROGRAM PACKAGE [FOLDER...]: leaves in the variable the program that it names already,
# the system's, or the package's in WORK/qemu, which looks for firmware in these folders of it.
want_emulator() {
    local variable=$1 work program=$3 package=$4 found folder
    local -a folders=()
    work=$(realpath -m "$2/qemu")
    shift 4
    found=${!variable:-$(command -v "$program" || true)}
    if [ -z "$found" ]; then
        found=$work/run
        if [ ! -x "$found" ]; then
            if ! unpack_package "$work" "$package"; then
                echo "no QEMU: $variable is to name a $program" >&2
                return 1
            fi
            for folder; do
                folders+=(-L "$work/root/$folder")
            done
            start_unpacked "$found" "$work/root/usr/bin/$program" "${folders[@]}" || return 1
        fi
    fi
    printf -v "$variable" %s "$found"
}
