#!/bin/sh
# User-Mode Linux's first program: what initramfs.sh is to the emulated machine. Sourced with: run (the run directory).
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
exec 2>/dev/console
mount -t tmpfs tmpfs /mnt &&
    mkdir /mnt/files /mnt/work /mnt/new &&
    mount -t overlay -o lowerdir=/,upperdir=/mnt/files,workdir=/mnt/work overlay /mnt/new &&
    mount -t tmpfs tmpfs /mnt/new/run &&
    mkdir /mnt/new/run/guest &&
    mount -t hostfs -o "$run" none /mnt/new/run/guest || exit 1
mount -t proc proc /mnt/new/proc
mount -t sysfs sysfs /mnt/new/sys
mount -t devtmpfs devtmpfs /mnt/new/dev
# Its own lacks the clock's frequency, which tools divide by.
mount --bind /mnt/new/run/guest/cpuinfo /mnt/new/proc/cpuinfo
exec chroot /mnt/new /bin/sh /run/guest/boot
