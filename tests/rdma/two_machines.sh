#!/bin/sh
# In each of two virtual machines with a soft-RoCE device and a cable between them: the link's tests between machines. The last
# one takes the second machine's network away.
set -e
export TANDEM_TEST_RDMA=1 TANDEM_TEST_LINK_RANK=$RDMA_VM_INDEX
export TANDEM_TEST_LINK_ADDRESS=$RDMA_VM_IP TANDEM_TEST_LINK_PEER=$RDMA_VM_PEER_IP
./rdma --exact two_machines --nocapture
TANDEM_TEST_LINK_CUT="ip link set eth0 down" ./rdma --exact a_cut_cable_is_noticed --nocapture
