#!/usr/bin/env bash
# A distribution's own kernel on our machine: Debian's cloud kernel, unchanged, boots from a VHDX.
#
# Needs no /dev/kvm: the host is a machine of QEMU's in software that has SVM, with the same kernel of Debian
# and its KVM (scripts/nested/outer), and our machine runs in there (scripts/nested/scenario) with a small root
# of Debian packages (scripts/nested/initrd, guest). What the guest has left on its disk is looked at here at
# last. A second machine there is an installed Debian, made of packages (scripts/nested/debian, installed).
# Everything is in target/nested; packages are fetched once a version. NESTED_SECONDS (900) bounds the whole,
# NESTED_STEPS are those of the scenario's steps that are done, if not all.
set -euo pipefail
cd "$(dirname "$0")/.."

SECONDS_AT_MOST=${NESTED_SECONDS:-900}
STEPS="${NESTED_STEPS:-boots writes grows pauses plugs pulls keeps goes_back switches_off panics installed_starts installed_stops}"
HERE=$PWD/target/nested
SCRIPTS=$PWD/scripts/nested
FERRY=$(realpath -m "${CARGO_TARGET_DIR:-target}")/debug/diskferry
ROOT_PACKAGES="base-files busybox-static e2fsprogs libblkid1 libc6 libcom-err2 libext2fs2 libgcc-s1 libss2 libuuid1"
# In the order in which they need each other; ext4 is built in.
VIRTIO="virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk"
OUTER_MODULES="$VIRTIO irqbypass kvm kvm-amd"
INNER_MODULES="$VIRTIO virtio-rng button evdev pvpanic pvpanic-mmio"
PATH=$PATH:/usr/sbin:/sbin
# Texts of programs are read here.
export LC_ALL=C

say() { echo "nested: $*"; }

fail() {
    local log
    for log in outer steps; do
        [ -s "$HERE/$log.log" ] || continue
        echo "--- the last lines of target/nested/$log.log" >&2
        tail -n 100 "$HERE/$log.log" | tr -d '\r' >&2
    done
    # Last, where it is seen: what a step says of itself, and what is wrong.
    grep -s '^nested: FAILED' "$HERE/steps.log" | tr -d '\r' >&2 || true
    echo "error: $1" >&2
    exit 1
}

# What is known of packages is brought up to date once, where that is allowed and turns out to be needed.
UPDATED=
update() {
    [ -z "$UPDATED" ] && [ "$(id -u)" -eq 0 ] || return 1
    UPDATED=yes
    apt-get update -qq
}

latest() { apt-cache show --no-all-versions "$1" 2>/dev/null | sed -n 's/^Version: //p'; }
file_of() { echo "$HERE/packages/$1_${2/:/%3a}.deb"; }

# fetch PACKAGE: its file is in target/nested/packages, in the version that this Debian has now.
fetch() {
    local version
    version=$(latest "$1")
    [ -n "$version" ] || return 1
    [ -s "$(file_of "$1" "$version")" ] && return
    rm -f "$HERE/packages/$1"_*_*.deb
    (cd "$HERE/packages" && apt-get download -qq "$1" 2>/dev/null) || return 1
    mv "$HERE/packages/$1"_*_*.deb "$(file_of "$1" "$version")"
}

# unpack FOLDER PACKAGE...
unpack() {
    local folder=$1 package
    shift
    for package in "$@"; do
        fetch "$package" || { update && fetch "$package"; } ||
            fail "the package $package cannot be fetched; as root: apt-get update"
        dpkg --extract "$(file_of "$package" "$(latest "$package")")" "$folder"
    done
}

# ram_disk OUTPUT INIT MODULE...: an initial RAM disk of busybox, a first program, and modules.
ram_disk() {
    local output=$1 init=$2 folder=$HERE/ram module
    shift 2
    rm -rf "$folder"
    mkdir -p "$folder"/{bin,dev,mnt,modules,proc,run,sys,tmp}
    cp "$BUSYBOX" "$folder/bin/busybox"
    ln -s busybox "$folder/bin/sh"
    install -m 755 "$init" "$folder/init"
    for module in "$@"; do
        find "$MODULES" -name "$module.ko" -exec cp {} "$folder/modules/" \;
        [ -s "$folder/modules/$module.ko" ] || fail "the kernel has no module $module"
        echo "$module" >>"$folder/modules/order"
    done
    (cd "$folder" && find . | "$BUSYBOX" cpio -o -H newc 2>/dev/null | gzip -1) >"$output"
}

# The kernel as an ELF file: what its bzImage holds, packed with LZ4 (payload_offset and payload_length of
# the setup header, behind setup_sects sectors).
elf_kernel() {
    local image=$1 sectors offset length
    number() { od -An -tu"$2" -j"$1" -N"$2" "$image" | tr -d ' '; }
    sectors=$(number $((0x1F1)) 1) offset=$(number $((0x248)) 4) length=$(number $((0x24C)) 4)
    # Its last four bytes are the length of what is unpacked.
    dd if="$image" iflag=skip_bytes,count_bytes bs=1M status=none \
        skip=$(((sectors + 1) * 512 + offset)) count=$((length - 4)) | lz4 -dcq
}

root_disk() {
    local root=$HERE/root
    rm -rf "$root" "$HERE"/root.img "$HERE"/root.vhdx
    mkdir -p "$root"
    # shellcheck disable=SC2086
    unpack "$root" $ROOT_PACKAGES
    mkdir -p "$root"/{data,dev,mnt,proc,run,sys,tmp}
    rm -rf "$root"/usr/share/{doc,locale,man}
    ln -s busybox "$root/bin/sh"
    install -m 755 "$SCRIPTS/guest" "$root/sbin/init"
    truncate -s 512M "$HERE/root.img"
    mkfs.ext4 -q -F -L root -d "$root" "$HERE/root.img"
    "$FERRY" convert --quiet --block-size 1M "$HERE/root.img" "$HERE/root.vhdx"
}

# What the outer machine has as its disk.
outer_disk() {
    local disk=$HERE/disk library
    rm -rf "$disk" "$HERE/disk.img"
    mkdir -p "$disk/lib"
    strip --strip-debug -o "$disk/diskferry" "$FERRY"
    for library in $(ldd "$FERRY" | grep -o '/[^ ]*'); do
        cp -L "$library" "$disk/lib/"
    done
    cp "$SCRIPTS"/{scenario,installed} "$HERE"/{command,initrd,debian.vhdx,root.vhdx,vmlinux} "$disk/"
    rm "$HERE/debian.vhdx"
    echo "$STEPS" >"$disk/steps"
    cp "$KERNEL" "$disk/vmlinuz"
    truncate -s 4G "$HERE/disk.img"
    mkfs.ext4 -q -F -d "$disk" "$HERE/disk.img"
}

run_outer() {
    local emulator=qemu-system-x86_64
    command -v $emulator >/dev/null || emulator=target/qemu/qemu-system-x86_64
    # Without XSAVE, because QEMU's SVM does not trap XSETBV: KVM would not learn what its guest enables. Then
    # there must be nothing that needs it either: a kernel believes what CPUID says of AVX.
    # It has one processor: with two, each on a thread, a guest of its KVM ended now and then in a triple fault on its
    # second processor. Our machine has two there all the same.
    # Its kernel's timer ticks, instead of being set for each event: QEMU 7.2 writes the word of a processor's pending
    # interrupts in VMRUN without its lock, so that one that comes at this moment may be forgotten, though it waits in the
    # APIC. Of a timer that is set once nothing comes any more then, and a guest that spins for its other processor spins for ever.
    # The next tick brings what waits.
    local timer="nohz=off highres=off"
    local processor=max,+svm,+npt,-xsave,-avx,-avx2,-fma,-f16c,-vaes,-vpclmulqdq
    # Its kernel has the first serial port, the scenario the second one.
    timeout --foreground --kill-after=10 "$SECONDS_AT_MOST" "$emulator" -accel tcg,thread=multi \
        -cpu "$processor" -smp 1 -m 3072 -nodefaults -no-user-config -display none -monitor none -no-reboot \
        -serial "file:$HERE/outer.log" -serial stdio \
        -kernel "$KERNEL" -initrd "$HERE/outer" -append "console=ttyS0 panic=-1 quiet $timer" \
        -drive "file=$HERE/disk.img,format=raw,if=virtio,cache=unsafe" </dev/null 2>&1 |
        tee "$HERE/steps.log" | grep --line-buffered '^nested: ' | sed -u 's|\r||' || true
    grep -q '^nested: PASSED' "$HERE/steps.log"
}

# file_system DISK: it is sound, and the guest has left nothing to be done.
file_system() {
    local image=${1%.vhdx}.img
    "$FERRY" convert --quiet "$1" "$image"
    e2fsck -fn "$image" >"$image.e2fsck" 2>&1 || fail "e2fsck: $(cat "$image.e2fsck")"
    say "  $(tail -n 1 "$image.e2fsck")"
}

# What the guest has left: the image is sound, so is its file system, and what it wrote is there.
look_at_disk() {
    local left=$HERE/left present
    rm -rf "$left"
    mkdir -p "$left"
    # Its own way of quoting is none: paths are seen from here.
    out_of() { (cd "$HERE" && debugfs -R "$1" "$2" 2>/dev/null); }
    out_of "dump /root.vhdx left/root.vhdx" disk.img
    # What the disk held at its snapshot, which the disk is built on.
    out_of "dump /root.kept.vhdx left/root.kept.vhdx" disk.img
    out_of "dump /console-disk.log console.log" disk.img
    "$FERRY" check --chain "$left/root.vhdx" >"$left/check" || fail "the image: $(cat "$left/check")"
    say "  $(tail -n 1 "$left/check" | sed 's/.*: //')"
    out_of "dump /data.vhdx left/data.vhdx" disk.img
    file_system "$left/root.vhdx"
    file_system "$left/data.vhdx"
    out_of "rdump /data left" left/root.img
    (cd "$left/data" && sha256sum --check --quiet sums) || fail "files are not what the guest wrote"
    say "  its files are what it wrote: $(cut -c67- "$left/data/sums" | tr '\n' ' ')"
    # The guest wrote 96 MiB, deleted and discarded them. Were they still there, there would be more blocks of
    # 1 MiB than what the file system holds and a part for its own tables.
    present=$("$FERRY" check "$left/root.kept.vhdx" | sed -n 's/.* \([0-9]*\) blocks present.*/\1/p')
    [ "$present" -lt $((BLOCKS_AT_FIRST + 64)) ] || fail "$present blocks: what was discarded is still there"
}

# shellcheck source=scripts/nested/debian
. "$SCRIPTS/debian"

say "building diskferry"
cargo build --quiet --bin diskferry
mkdir -p "$HERE/packages" "$HERE/unpacked"
rm -f "$HERE"/{outer,steps}.log
meta=linux-image-cloud-amd64
newest_kernel() { apt-cache depends $meta 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p'; }
kernel_package=$(newest_kernel || true)
# What apt knew may be older than what can be fetched.
if { [ -z "$kernel_package" ] || ! fetch "$kernel_package"; } && update; then
    kernel_package=$(newest_kernel || true)
fi
[ -n "$kernel_package" ] || fail "apt does not know $meta; as root: apt-get update"
say "kernel: $kernel_package"
rm -rf "$HERE/unpacked"
unpack "$HERE/unpacked" "$kernel_package" busybox-static
BUSYBOX=$HERE/unpacked/bin/busybox
KERNEL=$HERE/unpacked/boot/vmlinuz-${kernel_package#linux-image-}
MODULES=$HERE/unpacked/lib/modules/${kernel_package#linux-image-}
elf_kernel "$KERNEL" >"$HERE/vmlinux"
# shellcheck disable=SC2086
ram_disk "$HERE/outer" "$SCRIPTS/outer" $OUTER_MODULES
# shellcheck disable=SC2086
ram_disk "$HERE/initrd" "$SCRIPTS/initrd" $INNER_MODULES
root_disk
BLOCKS_AT_FIRST=$("$FERRY" check "$HERE/root.vhdx" | sed -n 's/.* \([0-9]*\) blocks present.*/\1/p')
debian_disk
outer_disk
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
trap 'exit 130' INT TERM
say "starting a host in software; its console is target/nested/outer.log, the scenario's target/nested/steps.log"
run_outer || fail "the scenario did not pass within $SECONDS_AT_MOST s"
say "looking at what it left on its disk"
case " $STEPS " in *" switches_off "*) look_at_disk ;; esac
case " $STEPS " in *" installed_stops "*) look_at_debian ;; esac
say "all of it holds, in $SECONDS s"
