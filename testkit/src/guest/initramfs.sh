#!/bin/busybox sh
# The guest's first program: the host's root file system, read-only, under a layer that forgets; then boot.sh in it.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
for module in /modules/*.ko; do
    $b insmod "$module" || $b echo "initramfs: cannot load $module" >/dev/console
done
nine=trans=virtio,version=9p2000.L,msize=512000
$b mount -t 9p -o ro,cache=loose,$nine root /lower &&
    $b mount -t tmpfs -o size=90% tmpfs /upper &&
    $b mkdir /upper/files /upper/work &&
    $b mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /new &&
    $b mount -t tmpfs tmpfs /new/run &&
    $b mkdir /new/run/guest &&
    $b mount -t 9p -o cache=none,$nine run /new/run/guest || $b poweroff -f
for directory in proc sys dev; do $b mount --move /$directory /new/$directory; done
exec $b switch_root /new /bin/sh /run/guest/boot
