#!/bin/sh
# In a virtual machine with a soft-RoCE device and a kernel that has netem: models over ranks that exchange by RDMA, and whole
# nodes with a cable between them that delays, reorders and loses packets.
set -e
export TEST_EMULATED=1 TEST_NETEM=1 TEST_TANDEM=$PWD/tandem
TANDEM_TEST_RDMA=1 ./sharded --test-threads=1 --nocapture ranks_serve the_demonstration_model
./e2e --test-threads=1 --nocapture namespaces::a_bad_network
