# Builds the guest, as root and in a mount namespace of its own: TARGET RECIPE SUITE MIRROR PACKAGES
set -eu
target=$1 recipe=$2 suite=$3 mirror=$4 packages=$5
build=$target/guest.new
root=$build/root
umask 022
rm -rf "$build" "$target/guest.old"
mkdir -p "$root"

# debootstrap itself knows only of apt's programs that find a proxy.
if command -v apt-config >/dev/null; then
    eval "$(apt-config shell http_proxy Acquire::http::Proxy https_proxy Acquire::https::Proxy)"
    [ -z "${http_proxy-}" ] || export http_proxy
    [ -z "${https_proxy-}" ] || export https_proxy
fi
debootstrap --arch=amd64 --variant=minbase --include="$packages" "$suite" "$root" "$mirror"

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
# What this computer has must not decide what the guest can boot from.
printf '%s\n' virtio_pci virtio_blk ext4 >>"$root/etc/initramfs-tools/modules"
echo MODULES=list >"$root/etc/initramfs-tools/conf.d/guest"
chroot "$root" update-initramfs -u
umount "$root/proc"

rm -rf "$root"/debootstrap "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* \
    "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/locale/*
cp "$root"/boot/vmlinuz-* "$build/vmlinuz"
cp "$root"/boot/initrd.img-* "$build/initrd.img"
mke2fs -q -t ext4 -L root -E lazy_itable_init=0,lazy_journal_init=0 -d "$root" "$build/root.img" 1G
chmod a+r "$build/vmlinuz" "$build/initrd.img"
rm -rf "$root"
echo "$recipe" >"$build/recipe"

[ ! -e "$target/guest" ] || mv "$target/guest" "$target/guest.old"
mv "$build" "$target/guest"
rm -rf "$target/guest.old"
