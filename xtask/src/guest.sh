# Builds a guest, as root and in a mount namespace of its own: DIRECTORY RECIPE SUITE MIRROR PACKAGES
set -eu
directory=$1 recipe=$2 suite=$3 mirror=$4 packages=$5
build=$directory.new
root=$build/root
umask 022
rm -rf "$build" "$directory.old"
mkdir -p "$build"

# What the initial RAM disk is made by is there before the kernel, so that it is made once. What this computer has must
# not decide what the guest can boot from.
mkdir -p "$build/first/etc/initramfs-tools/conf.d" "$build/first/usr/share/initramfs-tools/modules.d"
printf '%s\n' MODULES=list COMPRESS=gzip >"$build/first/etc/initramfs-tools/conf.d/guest"
printf '%s\n' virtio_pci virtio_blk ext4 >"$build/first/usr/share/initramfs-tools/modules.d/guest.conf"
mmdebstrap --quiet --mode=root --architectures=amd64 --variant=minbase --include="$packages" \
    --aptopt='APT::Install-Recommends "false"' --dpkgopt=force-unsafe-io \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --essential-hook="copy-in '$build/first/etc' '$build/first/usr' /" \
    "$suite" "$root" "$mirror"

echo 'LABEL=root / ext4 errors=remount-ro 0 1' >"$root/etc/fstab"
echo guest >"$root/etc/hostname"
echo '127.0.0.1 localhost guest' >"$root/etc/hosts"
# As an image has it that was never booted.
rm -f "$root"/etc/ssh/ssh_host_* "$root/etc/resolv.conf"
: >"$root/etc/machine-id"
# The login user of Debian's own images; one host key, since software emulation takes long to make others.
cat >"$root/etc/cloud/cloud.cfg.d/90_guest.cfg" <<'GUEST'
datasource_list: [NoCloud, None]
locale: C.UTF-8
ssh_genkeytypes: [ed25519]
system_info: {default_user: {name: admin}}
GUEST
mount -t proc proc "$root/proc"
chroot "$root" systemctl --quiet enable systemd-networkd
chroot "$root" systemctl --quiet disable apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
    e2scrub_all.timer e2scrub_reap.service fstrim.timer
umount "$root/proc"

cp "$root"/boot/vmlinuz-* "$build/vmlinuz"
cp "$root"/boot/initrd.img-* "$build/initrd.img"
mke2fs -q -t ext4 -L root -E lazy_itable_init=0,lazy_journal_init=0 -d "$root" "$build/root.img" 1G
chmod a+r "$build/vmlinuz" "$build/initrd.img"
rm -rf "$root" "$build/first"
echo "$recipe" >"$build/recipe"

[ ! -e "$directory" ] || mv "$directory" "$directory.old"
mv "$build" "$directory"
rm -rf "$directory.old"
