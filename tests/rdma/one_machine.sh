#!/bin/sh
# In a virtual machine with one soft-RoCE device: the link's tests on it, models over ranks that exchange by it, a server with
# workers, and two nodes in namespaces whose cable delays, reorders and loses packets (this kernel has netem). Then the link's
# tests beside a second device, on both.
set -e
export TANDEM_TEST_RDMA=1
TANDEM_TEST_RDMA_DEVICES=1 ./rdma --test-threads=1 --nocapture

export TEST_EMULATED=1 TEST_NETEM=1 TEST_TANDEM=$PWD/tandem TEST_REPOSITORY=$PWD
. ./run.sh
run sharded serving::ranks_serve_what_one_worker_serves
run sharded serving::the_demonstration_model_says_the_same_over_several_ranks
run e2e workers::workers_that_exchange_by_rdma_give_the_same_and_come_back
run e2e namespaces::a_bad_network_changes_no_token

ip link add eth1 type dummy
ip link set eth1 mtu 4500 up
ip addr add 10.78.0.1/24 dev eth1
rdma link add rxe1 type rxe netdev eth1
# Its GID comes with the address, a moment later.
tries=0
until grep -qs ffff:0a4e:0001 /sys/class/infiniband/rxe1/ports/1/gids/*; do
    tries=$((tries + 1))
    [ $tries -lt 100 ] || { echo "rxe1 has no GID of its address" >&2; exit 1; }
    sleep 0.1
done
TANDEM_TEST_RDMA_DEVICES=2 ./rdma --test-threads=1 --nocapture
./device --test-threads=1 over_rdma
