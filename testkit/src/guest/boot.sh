# The guest's process 1, after initramfs.sh or user-mode-init.sh: pure cgroup v2, the network that was asked for, then the
# command. Sourced with: network, address (of this machine on the wire), name, modules (the kernel's, on the host, if it has
# any), share (how to mount it, if there is one).
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
exec 2>/run/guest/boot.log
mkdir -p /dev/pts /dev/shm /sys/fs/cgroup /run/lock /run/netns
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -sf /proc/self/fd /dev/fd
ln -sf fd/0 /dev/stdin
ln -sf fd/1 /dev/stdout
ln -sf fd/2 /dev/stderr
# Where the kernel's own requests for modules look.
if [ -n "$modules" ]; then
    mkdir -p /lib/modules
    ln -sfn "$modules" "/lib/modules/$(uname -r)"
fi
hostname "$name"
[ -z "$share" ] || mount $share /run/guest/share
ip link set lo up
ulimit -c 0

device() { # device NAME INTERFACE [WITHIN...]: Soft-RoCE on it, with frames for a path MTU of 4096
    device=$1 interface=$2
    shift 2
    "$@" ip link set "$interface" mtu 4200 up && "$@" rdma link add "$device" type rxe netdev "$interface"
}

host() { # host NAME DEVICE ADDRESS: a namespace with one end of the cable
    ip netns add "$1"
    ip link set "$1" netns "$1"
    ip -n "$1" link set lo up
    ip -n "$1" addr add "$3/24" dev "$1"
    device "$2" "$1" ip netns exec "$1"
}

case $network in
none) ;;
loopback)
    ip link add soft0 type dummy
    ip addr add 10.99.0.1/24 dev soft0
    device rxe0 soft0
    ;;
pair)
    # Both ends of one cable in one host: policy routing makes packets cross it instead of taking the short cut.
    for key in all default; do
        sysctl -qw "net.ipv4.conf.$key.rp_filter=0" "net.ipv4.conf.$key.accept_local=1"
    done
    sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2
    ip link add left type veth peer name right
    ip addr add 10.98.0.1/24 dev left
    ip addr add 10.98.0.2/24 dev right
    device rxe0 left
    device rxe1 right
    ip rule add pref 100 lookup local
    ip rule del pref 0
    ip rule add pref 10 iif lo to 10.98.0.2 lookup 101
    ip route add 10.98.0.2 dev left src 10.98.0.1 table 101
    ip rule add pref 11 iif lo to 10.98.0.1 lookup 102
    ip route add 10.98.0.1 dev right src 10.98.0.2 table 102
    ;;
namespaces)
    # The devices are shown in both (`rdma system`), and their packets stay in their own.
    ip link add left type veth peer name right
    host left rxe0 10.98.0.1
    host right rxe1 10.98.0.2
    ;;
wire)
    # The one with a device behind it: a module may have made others.
    interface=$(ls -d /sys/class/net/*/device | cut -d/ -f5)
    ip addr add "$address/24" dev "$interface"
    device rxe0 "$interface"
    ;;
esac

output=/dev/tty1
if [ -d /sys/class/virtio-ports ]; then
    output=/dev/$(ls /sys/class/virtio-ports | head -n 1)
else
    stty raw -F $output
    dmesg -n 1
fi
: >/run/guest/begun
{
    sh /run/guest/command </dev/null 2>&1
    echo $? >/run/guest/status
} | cat >"$output"
sync
echo o >/proc/sysrq-trigger
sleep 60
