#!/bin/sh
# Builds a User-Mode Linux kernel with Soft-RoCE: user-mode.sh DIRECTORY APT_OPTION... leaves DIRECTORY/linux.
# The source is the newest that apt finds with these options. SMP came with 6.19, and older ones die on CPUs with AMX.
set -eu
directory=$1
shift
rm -rf "$directory"
mkdir -p "$directory"
cd "$directory"
apt-get "$@" update -qq
source=$(apt-cache "$@" search --names-only '^linux-source-[0-9.]*$' | cut -d ' ' -f 1 | sort -V | tail -n 1)
[ -n "$source" ] || { echo "there is no package linux-source" >&2; exit 1; }
apt-get "$@" download -qq "$source"
dpkg-deb -x "$source"_*.deb unpacked
tar -xJf "unpacked/usr/src/$source.tar.xz"
rm -rf unpacked "$source"_*.deb
mv "$source" source

make="make -C source ARCH=um O=$directory/objects"
mkdir objects
$make tinyconfig >/dev/null
options() { # options -e|-d NAME...
    state=$1
    shift
    for name; do source/scripts/config --file objects/.config "$state" "$name"; done
}
options -d CC_OPTIMIZE_FOR_SIZE MODULES WERROR DEBUG_INFO
options -e 64BIT SMP CC_OPTIMIZE_FOR_PERFORMANCE MULTIUSER PRINTK BUG KALLSYMS \
    FUTEX EPOLL SIGNALFD TIMERFD EVENTFD SHMEM AIO IO_URING ADVISE_SYSCALLS MEMBARRIER RSEQ POSIX_TIMERS FHANDLE \
    INOTIFY_USER FILE_LOCKING SYSVIPC POSIX_MQUEUE SYSCTL PROC_SYSCTL HIGH_RES_TIMERS NO_HZ_IDLE PREEMPT SECCOMP \
    SECCOMP_FILTER \
    BINFMT_ELF BINFMT_SCRIPT PROC_FS SYSFS TMPFS TMPFS_XATTR DEVTMPFS OVERLAY_FS CONFIGFS_FS HOSTFS MEMFD_CREATE \
    TTY UNIX98_PTYS SSL NULL_CHAN FD_CHAN MAGIC_SYSRQ STDERR_CONSOLE UML_RANDOM HW_RANDOM \
    NET UNIX INET IPV6 PACKET NETDEVICES NET_CORE VETH DUMMY IP_ADVANCED_ROUTER IP_MULTIPLE_TABLES NET_SCHED \
    NET_SCH_NETEM INET_DIAG \
    NAMESPACES NET_NS PID_NS UTS_NS IPC_NS USER_NS \
    CGROUPS MEMCG CGROUP_SCHED FAIR_GROUP_SCHED CFS_BANDWIDTH CPUSETS CGROUP_PIDS CGROUP_RDMA CGROUP_CPUACCT \
    CGROUP_FREEZER \
    PCI VIRTIO_MENU VIRTIO_UML UML_PCI_OVER_VIRTIO \
    INFINIBAND INFINIBAND_USER_ACCESS INFINIBAND_USER_MAD INFINIBAND_ADDR_TRANS RDMA_RXE
source/scripts/config --file objects/.config --set-val NR_CPUS 8 --set-val UML_PCI_OVER_VIRTIO_DEVICE_ID 1234
$make olddefconfig >/dev/null
for name in RDMA_RXE SMP OVERLAY_FS HOSTFS DUMMY IP_MULTIPLE_TABLES VETH CPUSETS MEMCG; do
    grep -q "^CONFIG_$name=y" objects/.config || { echo "$source cannot have $name in User-Mode Linux" >&2; exit 1; }
done
$make -j"$(nproc)" linux >build.log 2>&1 || { tail -n 20 build.log >&2; exit 1; }
strip -o linux objects/linux
rm -rf source objects
