#!/usr/bin/env bash
#
# cable.sh - set up this node's end of the 200 Gb/s cable between two DGX Sparks
#
# One cable shows as two network interfaces, the twins, each with an RDMA device of about 100 Gb/s; both together make
# the 200. Each twin gets an address in a subnet of its own, the same two subnets on both nodes, and an MTU of 9000. A
# limit of locked memory that RDMA can live with goes along. Everything is there at once and after the next boot.
# Running it again changes nothing; what somebody changed meanwhile is mended.
#
# USAGE (as root)
#   cable.sh set-up NODE [OPTIONS]   NODE is 1 on the first node, 2 on the second: the last number of its addresses
#   cable.sh remove [OPTIONS]        take it all back
#
# OPTIONS
#   --interfaces A,B   the twins, in this order on both nodes (default: the two interfaces of RDMA devices that have a
#                      cable, in the order of their PCI addresses)
#   --subnets P,Q      the first three numbers of their subnets (default 192.168.177,192.168.178)
#   --mtu N            default 9000
#   --dry-run          say what would be changed, change nothing
#   --root DIR         files and devices below DIR instead of /, as for an image; netplan then makes its files there,
#                      and applies nothing
#
# EXIT STATUS  0 when all is as it should be; 1 when something failed; 2 wrong usage.

set -euo pipefail

SUBNETS=192.168.177,192.168.178
INTERFACES=""
MTU=9000
ROOT=""
DRY=0
CHANGES=0
# Where the kernel has no other word for it.
MTU_BEFORE=1500
CARRIER_PATIENCE_S=5
NETPLAN_FILE=/etc/netplan/60-tandem-cable.yaml
LIMITS_FILE=/etc/security/limits.d/90-tandem-memlock.conf

main() {
    local command=${1:-}
    case $command in
        set-up) [ $# -ge 2 ] || usage; NODE=$2; shift 2 ;;
        remove) shift ;;
        *) usage ;;
    esac
    read_options "$@"
    [ "$DRY" = 1 ] || [ "$(id -u)" = 0 ] || fail "this needs root: sudo $0 ..."
    command -v ip >/dev/null || fail "there is no ip: apt install iproute2"
    if [ "$command" = set-up ]; then set_up; else remove; fi
    if [ $CHANGES = 0 ]; then echo "nothing to change"; fi
}

read_options() {
    while [ $# -gt 0 ]; do
        case $1 in
            --interfaces|--subnets|--mtu|--root) [ $# -ge 2 ] || usage ;;
        esac
        case $1 in
            --interfaces) INTERFACES=$2; shift ;;
            --subnets) SUBNETS=$2; shift ;;
            --mtu) MTU=$2; shift ;;
            --root) ROOT=${2%/}; shift ;;
            --dry-run) DRY=1 ;;
            *) usage ;;
        esac
        shift
    done
    [[ ${NODE:-1} =~ ^[0-9]+$ ]] && [ "${NODE:-1}" -ge 1 ] && [ "${NODE:-1}" -le 254 ] || fail "NODE is a number from 1 to 254" 2
    [[ $MTU =~ ^[0-9]+$ ]] && [ "$MTU" -ge 1280 ] && [ "$MTU" -le 9978 ] || fail "--mtu is a number from 1280 to 9978" 2
    local number='(25[0-5]|2[0-4][0-9]|1?[0-9]{1,2})'
    [[ $SUBNETS =~ ^$number\.$number\.$number,$number\.$number\.$number$ ]] ||
        fail "--subnets are two, three numbers each, like $(default_subnets)" 2
    IFS=, read -r FIRST_SUBNET SECOND_SUBNET <<<"$SUBNETS"
    [ "$FIRST_SUBNET" != "$SECOND_SUBNET" ] || fail "--subnets: each twin needs a subnet of its own" 2
}

set_up() {
    if [ -z "$INTERFACES" ]; then find_cable; fi
    name_twins
    put_file $LIMITS_FILE 644 "$(limits)"
    if command -v netplan >/dev/null; then
        put_file $NETPLAN_FILE 600 "$(netplan_file)"
        if [ $PUT = 1 ]; then netplan_takes_it; fi
    else
        echo "note: there is no netplan here, so addresses and MTU last until the next boot" >&2
    fi
    set_up_interface "$FIRST" "$FIRST_SUBNET.$NODE/24"
    set_up_interface "$SECOND" "$SECOND_SUBNET.$NODE/24"
}

# What netplan has applied already is found as it should be.
set_up_interface() {
    local interface=$1 address=$2
    if [ "$(mtu_of "$interface")" != "$MTU" ]; then
        change "$interface: MTU $MTU, it was $(mtu_of "$interface")" ip link set dev "$interface" mtu "$MTU"
    fi
    if ! is_up "$interface"; then change "$interface: up" ip link set dev "$interface" up; fi
    if ! has_address "$interface" "$address"; then
        change "$interface: address $address" ip address add "$address" dev "$interface"
    fi
}

remove() {
    local interface address
    if [ -z "$INTERFACES" ] && [ -e "$ROOT$NETPLAN_FILE" ]; then
        INTERFACES=$(sed -n 's/^    \([^ ]*\):$/\1/p' "$ROOT$NETPLAN_FILE" | paste -sd ,)
    fi
    if [ -z "$INTERFACES" ]; then find_cable; fi
    name_twins
    if [ -e "$ROOT$LIMITS_FILE" ]; then change "$LIMITS_FILE: removed" rm "$ROOT$LIMITS_FILE"; fi
    if [ -e "$ROOT$NETPLAN_FILE" ]; then
        change "$NETPLAN_FILE: removed" rm "$ROOT$NETPLAN_FILE"
        netplan_takes_it
    fi
    for interface in "$FIRST" "$SECOND"; do
        for address in $(addresses_of "$interface"); do
            case $address in
                "$FIRST_SUBNET".*|"$SECOND_SUBNET".*)
                    change "$interface: no address $address" ip address delete "$address" dev "$interface" ;;
            esac
        done
        if [ "$(mtu_of "$interface")" != $MTU_BEFORE ]; then
            change "$interface: MTU $MTU_BEFORE" ip link set dev "$interface" mtu $MTU_BEFORE
        fi
    done
}

# --- which interfaces ---

name_twins() {
    local interface rest
    IFS=, read -r FIRST SECOND rest <<<"$INTERFACES"
    [ -n "$FIRST" ] && [ -n "$SECOND" ] && [ -z "$rest" ] && [ "$FIRST" != "$SECOND" ] ||
        fail "there must be two interfaces, the twins of one cable, not \"$INTERFACES\"; name them with --interfaces A,B.
Interfaces of RDMA devices here: $(rdma_interfaces | paste -sd ' ')"
    for interface in "$FIRST" "$SECOND"; do
        ip link show dev "$interface" >/dev/null 2>&1 || fail "there is no network interface $interface"
    done
}

# Those of RDMA devices that have a cable. An interface has to be up to tell, and takes a moment then.
find_cable() {
    local interface tries
    for interface in $(rdma_interfaces); do
        if ! is_up "$interface"; then change "$interface: up" ip link set dev "$interface" up; fi
    done
    for ((tries = 0; tries < CARRIER_PATIENCE_S * 5; tries++)); do
        INTERFACES=$(cabled_interfaces)
        if [[ $INTERFACES == *,* ]]; then return; fi
        sleep 0.2
    done
    echo "note: a cable counts where the interfaces at its other end are up as well" >&2
}

cabled_interfaces() {
    local interface
    for interface in $(rdma_interfaces); do
        if [[ $(ip -o link show dev "$interface") == *LOWER_UP* ]]; then echo "$interface"; fi
    done | paste -sd ,
}

# Interfaces of RDMA devices, in the order of their PCI addresses.
rdma_interfaces() {
    local device
    for device in "$ROOT"/sys/class/infiniband/*; do
        [ -d "$device/device/net" ] || continue
        echo "$(basename "$(readlink -f "$device/device")") $(ls "$device/device/net" | head -n 1)"
    done | sort | cut -d ' ' -f 2
}

is_up() { [[ $(ip -o link show dev "$1") =~ [\<,]UP[,\>] ]]; }
mtu_of() { ip -o link show dev "$1" | sed -n 's/.* mtu \([0-9]*\) .*/\1/p'; }
addresses_of() { ip -o -4 address show dev "$1" | awk '{ print $4 }'; }
has_address() { addresses_of "$1" | grep -Fxq "$2"; }

# --- files ---

# No DHCP, which would wait in vain and take the addresses away; and a boot does not wait for the other node.
netplan_file() {
    cat <<END
# Written by tandem's deploy/network/cable.sh: both twins of the cable to the other node.
network:
  version: 2
  ethernets:
$(netplan_interface "$FIRST" "$FIRST_SUBNET")
$(netplan_interface "$SECOND" "$SECOND_SUBNET")
END
}

netplan_interface() {
    cat <<END
    $1:
      addresses: [$2.$NODE/24]
      mtu: $MTU
      dhcp4: false
      dhcp6: false
      optional: true
END
}

limits() {
    cat <<END
# Written by tandem's deploy/network/cable.sh: RDMA registers memory, which locks it. For sessions that begin from now on.
*    - memlock unlimited
root - memlock unlimited
END
}

netplan_takes_it() {
    if [ "$DRY" = 1 ]; then return; fi
    if [ -n "$ROOT" ]; then netplan generate --root-dir "$ROOT"; else netplan apply; fi
}

# put_file FILE MODE TEXT: PUT says whether that changed anything. Never half written.
put_file() {
    local file=$ROOT$1
    PUT=0
    if [ -e "$file" ] && [ "$(cat "$file")" = "$3" ] && [ "$(stat -c %a "$file")" = "$2" ]; then return; fi
    PUT=1
    change "$1: written" write_file "$file" "$2" "$3"
}

write_file() {
    mkdir -p "$(dirname "$1")"
    (umask 077; printf '%s\n' "$3" >"$1.new")
    chmod "$2" "$1.new"
    mv "$1.new" "$1"
}

# --- telling ---

# change WHAT COMMAND...: does it, unless this is a dry run, and says so.
change() {
    CHANGES=$((CHANGES + 1))
    if [ "$DRY" = 1 ]; then
        echo "would change: $1"
    else
        "${@:2}"
        echo "changed: $1"
    fi
}

default_subnets() { sed -n 's/^SUBNETS=//p' "$0"; }
usage() { sed -n '/^# USAGE/,/^# EXIT/p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 2; }
fail() { echo "cable.sh: $1" >&2; exit "${2:-1}"; }

main "$@"
