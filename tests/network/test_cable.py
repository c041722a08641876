"""deploy/network/cable.sh in two network namespaces, joined by two pairs of virtual interfaces as two nodes are by the cable.

Needs root, for the namespaces:  sudo python3 -m unittest discover -s tests/network
"""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "deploy/network/cable.sh"
LIMIT_S = 60


def run(*command, namespace=None):
    if namespace:
        command = ("ip", "netns", "exec", namespace, *command)
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    return done.returncode, done.stdout + done.stderr


def must(*command, namespace=None):
    code, output = run(*command, namespace=namespace)
    assert code == 0, f"{' '.join(command)}: {code}: {output}"
    return output


class Node:
    """A namespace, and a folder that stands for its /etc and /sys."""

    def __init__(self, number):
        self.number = number
        self.namespace = f"tandem-{os.getpid()}-{number}"
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="tandem-cable-"))
        must("ip", "netns", "add", self.namespace)

    def end(self):
        run("ip", "netns", "delete", self.namespace)
        shutil.rmtree(self.root)

    def add_rdma_device(self, device, pci, interface):
        """As the kernel lists one whose network interface is this."""
        folder = self.root / "sys/devices" / pci
        (folder / "net" / interface).mkdir(parents=True)
        (self.root / "sys/class/infiniband" / device).mkdir(parents=True)
        (self.root / "sys/class/infiniband" / device / "device").symlink_to(folder)

    def cable(self, *arguments):
        return run(str(SCRIPT), *arguments, "--root", str(self.root), namespace=self.namespace)

    def set_up(self, *arguments):
        code, output = self.cable("set-up", str(self.number), *arguments)
        assert code == 0, output
        return output

    def state(self):
        """All there is: addresses, MTUs and states of interfaces, and files with their times."""
        interfaces = json.loads(must("ip", "-json", "address", namespace=self.namespace))
        for interface in interfaces:
            for address in interface["addr_info"]:
                # They age.
                address.pop("valid_life_time", None), address.pop("preferred_life_time", None)
        files = {}
        for path in sorted((self.root / "etc").rglob("*")):
            if path.is_file():
                files[str(path)] = (path.read_text(), path.stat().st_mtime_ns, path.stat().st_ino, path.stat().st_mode)
        return interfaces, files

    def ip(self, *arguments):
        return must("ip", *arguments, namespace=self.namespace)

    def addresses(self, interface):
        listed = json.loads(self.ip("-json", "-4", "address", "show", "dev", interface))
        return [address["local"] for entry in listed for address in entry["addr_info"]]

    def file(self, name):
        return self.root / "etc" / name


class Cable(unittest.TestCase):
    def setUp(self):
        self.nodes = []
        self.addCleanup(lambda: [node.end() for node in self.nodes])
        for number in (1, 2):
            self.nodes.append(Node(number))
        first, second = self.nodes
        # As a Spark has them: two ports, each with a twin in another PCI domain; only the first port has a cable.
        for interface in ("enp1s0f0np0", "enP2p1s0f0np0"):
            must("ip", "link", "add", interface, "netns", first.namespace, "type", "veth",
                 "peer", "name", interface, "netns", second.namespace)
        for node in self.nodes:
            for interface in ("enp1s0f1np1", "enP2p1s0f1np1"):
                node.ip("link", "add", interface, "type", "veth", "peer", "name", f"no{interface[2:]}")
            node.add_rdma_device("rocep1s0f0", "0000:01:00.0", "enp1s0f0np0")
            node.add_rdma_device("rocep1s0f1", "0000:01:00.1", "enp1s0f1np1")
            node.add_rdma_device("roceP2p1s0f0", "0002:01:00.0", "enP2p1s0f0np0")
            node.add_rdma_device("roceP2p1s0f1", "0002:01:00.1", "enP2p1s0f1np1")
        # A cable is in when both ends are up.
        second.ip("link", "set", "enp1s0f0np0", "up")
        second.ip("link", "set", "enP2p1s0f0np0", "up")

    def test_a_second_run_changes_nothing(self):
        for node in self.nodes:
            self.assertIn("changed: enp1s0f0np0: MTU 9000", node.set_up())
        # The interfaces came to rest: link-local addresses are tentative at first.
        self.wait_for_addresses()
        for node in self.nodes:
            before = node.state()
            self.assertEqual(node.set_up().strip().splitlines()[-1], "nothing to change")
            self.assertEqual(node.state(), before)

    def test_the_twins_reach_each_other_with_large_packets(self):
        for node in self.nodes:
            node.set_up()
        first, second = self.nodes
        self.assertEqual(first.addresses("enp1s0f0np0"), ["192.168.177.1"])
        self.assertEqual(second.addresses("enP2p1s0f0np0"), ["192.168.178.2"])
        for subnet in ("192.168.177", "192.168.178"):
            # 8972 bytes, two headers beside them, and not in pieces.
            must("ping", "-c", "1", "-W", "5", "-M", "do", "-s", "8972", f"{subnet}.2", namespace=first.namespace)

    def test_what_somebody_changed_is_mended_and_nothing_else(self):
        node = self.nodes[0]
        node.set_up()
        self.nodes[1].set_up()
        node.ip("link", "set", "enP2p1s0f0np0", "mtu", "1500")
        node.ip("address", "flush", "dev", "enp1s0f0np0")
        output = node.set_up()
        self.assertEqual(sorted(output.strip().splitlines()), [
            "changed: enP2p1s0f0np0: MTU 9000, it was 1500",
            "changed: enp1s0f0np0: address 192.168.177.1/24",
        ])
        node.file("netplan/60-tandem-cable.yaml").write_text("network: {}\n")
        self.assertEqual(node.set_up().strip(), "changed: /etc/netplan/60-tandem-cable.yaml: written")
        self.assertEqual(node.set_up().strip(), "nothing to change")

    def test_netplan_understands_what_is_written_for_the_next_boot(self):
        node = self.nodes[0]
        node.set_up()
        self.nodes[1].set_up()
        written = node.file("netplan/60-tandem-cable.yaml")
        self.assertEqual(written.stat().st_mode & 0o777, 0o600)
        for interface, address in (("enp1s0f0np0", "192.168.177.1/24"), ("enP2p1s0f0np0", "192.168.178.1/24")):
            made = "".join(path.read_text() for path in (node.root / "run/systemd/network").glob(f"*{interface}*"))
            self.assertIn(f"Address={address}", made)
            self.assertIn("MTUBytes=9000", made)
        self.assertIn("memlock unlimited", node.file("security/limits.d/90-tandem-memlock.conf").read_text())

    def test_removing_takes_all_back_and_may_be_repeated(self):
        node = self.nodes[0]
        node.set_up()
        self.nodes[1].set_up()
        node.ip("address", "add", "10.9.8.7/24", "dev", "enp1s0f0np0")
        code, output = node.cable("remove")
        self.assertEqual(code, 0, output)
        self.assertEqual(node.addresses("enp1s0f0np0"), ["10.9.8.7"], "what is not ours stays")
        self.assertEqual(node.addresses("enP2p1s0f0np0"), [])
        self.assertIn("mtu 1500", node.ip("link", "show", "dev", "enp1s0f0np0"))
        self.assertEqual([path for path in (node.root / "etc").rglob("*") if path.is_file()], [])
        code, output = node.cable("remove")
        self.assertEqual((code, output.strip()), (0, "nothing to change"))

    def test_a_dry_run_changes_nothing(self):
        node = self.nodes[0]
        before = node.state()
        output = node.set_up("--dry-run", "--interfaces", "enp1s0f0np0,enP2p1s0f0np0")
        self.assertIn("would change: enP2p1s0f0np0: address 192.168.178.1/24", output)
        self.assertEqual(node.state(), before)

    def test_what_cannot_be_is_refused_and_changes_nothing(self):
        node = self.nodes[0]
        before = node.state()
        twins = ("--interfaces", "enp1s0f0np0,enP2p1s0f0np0")
        for arguments, code, reason in [
            (("set-up",), 2, "USAGE"),
            (("set-up", "one"), 2, "NODE is a number"),
            (("set-up", "255", *twins), 2, "NODE is a number"),
            (("set-up", "1", "--subnets", "192.168.1,192.168.1"), 2, "a subnet of its own"),
            (("set-up", "1", "--subnets", "192.168.300,192.168.1"), 2, "--subnets"),
            (("set-up", "1", "--mtu", "100000"), 2, "--mtu"),
            (("set-up", "1", "--mut", "9000"), 2, "USAGE"),
            (("set-up", "1", "--interfaces", "enp1s0f0np0"), 1, "the twins of one cable"),
            (("set-up", "1", "--interfaces", "enp1s0f0np0,eth99"), 1, "no network interface eth99"),
        ]:
            with self.subTest(arguments=arguments):
                got, output = node.cable(*arguments)
                self.assertEqual(got, code, output)
                self.assertIn(reason, output)
        self.assertEqual(node.state(), before)

    def test_one_cabled_twin_is_not_enough(self):
        self.nodes[1].ip("link", "set", "enP2p1s0f0np0", "down")
        code, output = self.nodes[0].cable("set-up", "1")
        self.assertEqual(code, 1)
        self.assertIn('not "enp1s0f0np0"', output)
        self.assertIn("enP2p1s0f1np1", output, "the others are named")
        self.assertFalse((self.nodes[0].root / "etc").exists())

    def wait_for_addresses(self):
        for node in self.nodes:
            for _ in range(100):
                if "tentative" not in node.ip("address"):
                    break
                must("sleep", "0.1")


if __name__ == "__main__":
    unittest.main()
