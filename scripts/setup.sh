#!/usr/bin/env bash
# Makes sure that every program the tests and the demo run is here.
#
# On Debian 12 as root it installs the packages of the missing ones, and only those: what is
# already installed (a newer qemu-utils, say) is neither replaced nor removed. Elsewhere, or not as
# root, it prints what to install and fails. Further programs may be given as program:package.
#
# etcd is unpacked into target/etcd where it is missing: its package would start a server on this host.
#
# QEMU's emulator of one release cannot stand beside qemu-utils of another. Where installing it would
# take something away, its packages are unpacked into target/qemu, and tests find it there.
set -euo pipefail
cd "$(dirname "$0")/.."

# program:package, module=NAME:package for a module of Debian's Python, or file=PATH:package, by Debian 12's names. A toolchain for Rust is not taken from Debian: its 1.63 is
# too old for edition 2024.
NEEDED="
qemu-img:qemu-utils
qemu-io:qemu-utils
qemu-nbd:qemu-utils
fio:fio
nbdcopy:libnbd-bin
nbdinfo:libnbd-bin
nbdfuse:libnbd-bin
nbdkit:nbdkit
vhdiinfo:libvhdi-utils
module=pyvhdi:python3-libvhdi
module=prometheus_client:python3-prometheus-client
mkfs.ext4:e2fsprogs
e2fsck:e2fsprogs
debugfs:e2fsprogs
dumpe2fs:e2fsprogs
fdisk:fdisk
sfdisk:fdisk
fusermount3:fuse3
ip:iproute2
unshare:util-linux
/bin/kill:procps
iasl:acpica-tools
make:make
cc:gcc
file=/usr/include/stdio.h:libc6-dev
$*
"
EMULATOR=qemu-system-x86_64
EMULATOR_PACKAGE=qemu-system-x86
UNPACKED=target/qemu
ETCD=target/etcd
MINIMUM_RUST=92

have() {
    if [ "${1#file=}" != "$1" ]; then
        [ -e "${1#file=}" ]
        return
    fi
    if [ "${1#module=}" != "$1" ]; then
        /usr/bin/python3 -c "import ${1#module=}" 2>/dev/null
        return
    fi
    PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1
}

missing_packages() {
    local pair
    for pair in $NEEDED; do
        have "${pair%%:*}" || echo "${pair##*:}"
    done | sort -u
}

fail() {
    echo "error: $1" >&2
    shift
    printf 'hint: %s\n' "$@" >&2
    exit 1
}

check_rust() {
    have cargo || fail "cargo is not installed" \
        "install Rust 1.$MINIMUM_RUST or newer with rustup, with rustfmt and clippy"
    local minor
    minor=$(cargo --version | sed -E 's/^cargo 1\.([0-9]+).*/\1/')
    if [ "$minor" -lt "$MINIMUM_RUST" ] 2>/dev/null; then
        fail "cargo 1.$minor is too old" "rustup update stable (1.$MINIMUM_RUST or newer is needed)"
    fi
}

install_missing() {
    local packages=$1
    if [ "$(id -u)" -ne 0 ]; then
        fail "some programs are missing: $(echo $packages)" \
            "as root: apt-get update && apt-get install --no-install-recommends $(echo $packages)"
    fi
    have apt-get || fail "some programs are missing and there is no apt-get here" \
        "install what these Debian packages hold: $(echo $packages)"
    echo "setup: installing $(echo $packages)"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # --no-remove: rather fail than take a package away to make room for another release's.
    # shellcheck disable=SC2086
    apt-get install -y -qq --no-install-recommends --no-upgrade --no-remove $packages >/dev/null
}

have_emulator() {
    have "$EMULATOR" || [ -x "$UNPACKED/$EMULATOR" ]
}

# What apt would do for the emulator, as lines of its simulation.
emulator_plan() {
    apt-get install --simulate -qq --no-install-recommends "$EMULATOR_PACKAGE"
}

unpack_emulator() {
    local packages package
    packages=$(emulator_plan | sed -n 's/^Inst \([^ ]*\) .*/\1/p')
    echo "setup: unpacking $(echo $packages) into $UNPACKED"
    mkdir -p "$UNPACKED/packages"
    # shellcheck disable=SC2086
    (cd "$UNPACKED/packages" && apt-get download -qq $packages)
    for package in "$UNPACKED"/packages/*.deb; do
        dpkg --extract "$package" "$UNPACKED/root"
    done
    rm -r "$UNPACKED/packages"
    cat > "$UNPACKED/$EMULATOR" <<EOF
#!/bin/sh
root=\$(dirname "\$(readlink -f "\$0")")/root
export LD_LIBRARY_PATH=\$root/usr/lib/x86_64-linux-gnu
exec "\$root/usr/bin/$EMULATOR" -L "\$root/usr/share/qemu" -L "\$root/usr/share/seabios" \\
    -L "\$root/usr/lib/ipxe/qemu" "\$@"
EOF
    chmod +x "$UNPACKED/$EMULATOR"
}

provide_emulator() {
    have apt-get || fail "$EMULATOR is missing and there is no apt-get here" \
        "install what Debian calls $EMULATOR_PACKAGE"
    if [ "$(id -u)" -eq 0 ]; then
        apt-get update -qq
    fi
    if emulator_plan | grep -q '^Remv'; then
        unpack_emulator
    else
        install_missing "$EMULATOR_PACKAGE"
    fi
    have_emulator || fail "$EMULATOR is still missing" "look at the output of apt-get above"
}

provide_etcd() {
    have apt-get || fail "etcd is missing and there is no apt-get here" \
        "install what Debian calls etcd-server"
    if [ "$(id -u)" -eq 0 ]; then
        apt-get update -qq
    fi
    echo "setup: unpacking etcd-server into $ETCD"
    mkdir -p "$ETCD"
    # As root, apt would rather fetch as nobody in particular, who may not write here.
    (cd "$ETCD" && apt-get download -qq -o APT::Sandbox::User=root etcd-server && dpkg --extract etcd-server*.deb . && rm etcd-server*.deb)
    [ -x "$ETCD/usr/bin/etcd" ] || fail "etcd is still missing" "look at the output of apt-get above"
}

check_rust
packages=$(missing_packages)
if [ -n "$packages" ]; then
    install_missing "$packages"
    packages=$(missing_packages)
    [ -z "$packages" ] || fail "still missing after the installation: $(echo $packages)" \
        "look at the output of apt-get above"
fi
have_emulator || provide_emulator
have etcd || [ -x "$ETCD/usr/bin/etcd" ] || provide_etcd
echo "setup: all programs are here"
