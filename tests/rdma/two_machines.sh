#!/bin/sh
# In each of two virtual machines with a soft-RoCE device and a cable between them: the link's tests between machines, on a good
# network, then on one that delays, reorders and loses packets; then a server and a worker, whose cable is pulled and put back.
# The last one takes the second machine's network away.
set -e
export TANDEM_TEST_RDMA=1 TANDEM_TEST_LINK_RANK=$RDMA_VM_INDEX
export TANDEM_TEST_LINK_ADDRESS=$RDMA_VM_IP TANDEM_TEST_LINK_PEER=$RDMA_VM_PEER_IP

. ./run.sh

run rdma two_machines
run tcp two_machines

# By its path: this shell's own tc knows no netem. Reliable connections take packets out of order for lost ones and give up
# soon: what carries RoCE keeps the order, so RDMA has delay and loss alone.
/sbin/tc qdisc add dev eth0 root netem delay 2ms loss 1%
run rdma two_machines
/sbin/tc qdisc change dev eth0 root netem delay 2ms 1ms loss 1%
run tcp two_machines
/sbin/tc -s qdisc show dev eth0
/sbin/tc qdisc del dev eth0 root

TEST_EMULATED=1 TEST_TANDEM=$PWD/tandem TANDEM_TEST_LINK_INTERFACE=eth0 \
    run e2e machines::two_machines_serve_over_rdma_also_after_their_cable_was_pulled

export TANDEM_TEST_LINK_CUT="ip link set eth0 down"
run rdma a_cut_cable_is_noticed
