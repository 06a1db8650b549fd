#!/usr/bin/python3 -SEs
# SPDX-License-Identifier: Apache-2.0
"""A small CNI plugin that keeps every sentence of the checklist, so that it can be broken one sentence at a time.

FAULT in the environment names what is broken, words with commas between. It routes 10.77.0.0/26 over one veth for each
attachment and keeps its books in the folder `stateDir` of the config. Not for anything but the runner's own tests.
"""
import fcntl
import ipaddress
import json
import os
import re
import subprocess
import sys
import time

FAULTS = set(filter(None, os.environ.get("FAULT", "").split(",")))
VERSIONS = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
NET = ipaddress.ip_network("10.77.0.0/26")
GATEWAY = "10.77.0.1"
MTU = 1450
VERSION = "1.1.0"


def broken(fault):
    return fault in FAULTS


class Refused(Exception):
    def __init__(self, code, msg):
        super().__init__(msg)
        self.code, self.msg = code, msg


def run(*argv, ok=True):
    out = subprocess.run(argv, capture_output=True, text=True)
    if ok and out.returncode:
        raise Refused(5, f"{' '.join(argv)}: {out.stderr.strip()}")
    return out.stdout


def ip(netns, *args, ok=True):
    return run("ip", *(["-n", netns] if netns else []), *args, ok=ok)


def links(netns):
    return {link["ifname"]: link for link in json.loads(ip(netns, "-j", "link", "show") or "[]")}


def environment(verb):
    if verb not in ("ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION"):
        raise Refused(4, f"CNI_COMMAND is {verb!r}")
    needed = {"ADD": ["CONTAINERID", "NETNS", "IFNAME"], "CHECK": ["CONTAINERID", "NETNS", "IFNAME"],
              "DEL": ["CONTAINERID", "IFNAME"], "GC": ["PATH"]}
    if broken("del-needs-netns"):
        needed["DEL"].append("NETNS")
    names = ["CNI_" + name for name in needed.get(verb, [])]
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        raise Refused(4, "missing: " + ", ".join(missing))
    if "CNI_IFNAME" in names and not broken("accepts-any-name"):
        ifname = os.environ["CNI_IFNAME"]
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", os.environ["CNI_CONTAINERID"]):
            raise Refused(4, "CNI_CONTAINERID is invalid")
        if len(ifname.encode()) > 15 or ifname in (".", "..") or re.search(r"[/:\s]", ifname):
            raise Refused(4, "CNI_IFNAME is invalid")


def config(verb, text):
    global VERSION
    try:
        conf = json.loads(text)
    except ValueError as error:
        raise Refused(6, f"stdin: {error}")
    if not isinstance(conf, dict):
        raise Refused(6, "stdin: no object")
    VERSION = conf.get("cniVersion", "0.2.0")
    if verb == "VERSION":
        return conf
    if VERSION not in VERSIONS:
        wrong, VERSION = VERSION, "1.1.0"
        raise Refused(1, f"cniVersion {wrong!r} is not spoken")
    if (verb == "CHECK" and VERSION < "0.4.0") or (verb in ("GC", "STATUS") and VERSION < "1.1.0"):
        raise Refused(1, f"{VERSION} has no {verb}")
    if not isinstance(conf.get("name"), str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", conf["name"]):
        raise Refused(7, "name is invalid")
    if "conformanceKey" in conf:
        raise Refused(2, f"unknown key conformanceKey {conf['conformanceKey']!r}")
    if verb == "ADD" and not isinstance(conf.get("dns") or {}, dict):
        raise Refused(7, "dns is no object")
    if not os.path.isdir(conf["stateDir"]) and verb in ("ADD", "STATUS") and not broken("status-always-ok"):
        raise Refused(50 if verb == "STATUS" else 11, f"{conf['stateDir']} is not there")
    return conf


class Books:
    def __init__(self, conf):
        self.path = os.path.join(conf["stateDir"], "state.json")

    def __enter__(self):
        self.lock = open(self.path + ".lock", "w")
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        try:
            self.state = json.load(open(self.path))
        except FileNotFoundError:
            self.state = {}
        return self.state

    def __exit__(self, *_):
        with open(self.path + ".new", "w") as file:
            json.dump(self.state, file)
        os.rename(self.path + ".new", self.path)
        self.lock.close()


def key(conf):
    return "|".join([conf["name"], os.environ["CNI_CONTAINERID"], os.environ["CNI_IFNAME"]])


def netns():
    path = os.environ["CNI_NETNS"]
    own = os.stat("/proc/self/ns/net")
    try:
        there = os.stat(path)
    except FileNotFoundError:
        raise Refused(3, f"CNI_NETNS {path} is gone")
    if there.st_dev != own.st_dev:
        raise Refused(4, f"CNI_NETNS {path} is no network namespace")
    if there.st_ino == own.st_ino and not broken("own-netns"):
        raise Refused(8, "CNI_NETNS is the plugin's own")
    return os.path.basename(path)


def wishes(conf):
    wanted = conf.get("runtimeConfig") or {}
    args = dict(pair.split("=", 1) for pair in os.environ.get("CNI_ARGS", "").split(";") if "=" in pair)
    in_args = (conf.get("args") or {}).get("cni", {}).get("ips", [])
    ips = wanted.get("ips") or in_args or ([args["IP"]] if "IP" in args else [])
    if broken("precedence"):
        ips = in_args or ips
    if not isinstance(ips, list):
        raise Refused(7, "ips is no list")
    ranges = [(r[0]["rangeStart"], r[0]["rangeEnd"]) for r in wanted.get("ipRanges", [])]
    mac = wanted.get("mac")
    if mac and not re.fullmatch(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}", mac):
        raise Refused(7, f"mac {mac} is invalid")
    ports = []
    for port in wanted.get("portMappings", []):
        numbers = all(0 < port[name] < 65536 for name in ("hostPort", "containerPort"))
        if not numbers or port["protocol"] not in ("tcp", "udp") or port.get("hostIP", "") not in ("", "0.0.0.0"):
            raise Refused(7, f"portMappings: {port}")
        ports.append([port["protocol"], port["hostPort"], port["containerPort"]])
    band = wanted.get("bandwidth")
    if band and not (isinstance(band.get("ingressRate", 0), int) and band.get("ingressRate", 0) >= 0):
        raise Refused(7, f"bandwidth: {band}")
    try:
        ips = [str(ipaddress.ip_interface(text).ip) for text in ips]
    except ValueError as error:
        raise Refused(7, f"ips: {error}")
    return ips, ranges, mac, ports, band


def choose(state, ips, ranges, ports):
    used = {entry["ip"] for entry in state.values()} | {GATEWAY, str(NET[0])}
    if ips:
        if ipaddress.ip_address(ips[0]) not in NET:
            raise Refused(101, f"{ips[0]} is in no pool")
        if ips[0] in used:
            raise Refused(101, f"{ips[0]} is taken")
        return ips[0]
    for mine in ports:
        if any(mine[:2] == theirs[:2] for entry in state.values() for theirs in entry["ports"]):
            if not broken("ports-shared"):
                raise Refused(102, f"port {mine} is taken")
    if broken("one-address"):
        return str(NET[2])
    low, high = (ipaddress.ip_address(end) for end in ranges[0]) if ranges else (NET[0], NET[-1])
    for address in NET:
        if low <= address <= high and str(address) not in used:
            return str(address)
    raise Refused(100, f"{NET} is used up")


def add(conf):
    if "conformanceCapability" in (conf.get("runtimeConfig") or {}):
        raise Refused(2, "conformanceCapability is not served")
    sandbox, ifname = netns(), os.environ["CNI_IFNAME"]
    prev = conf.get("prevResult")
    check_prev(prev)
    if prev and any(i["name"] == ifname and i.get("sandbox") for i in prev.get("interfaces", [])):
        with Books(conf) as state:
            state[key(conf)] = {"ip": prev["ips"][0]["address"].split("/")[0], "host": None, "ports": []}
        return prev
    if broken("slow"):
        time.sleep(20)
    if ifname in links(sandbox):
        if broken("replaces-existing"):
            ip(sandbox, "link", "del", ifname)
        else:
            if broken("leaks-on-failed-add"):
                ip(None, "link", "add", f"leak{os.getpid()}", "type", "bridge")
            raise Refused(5, f"{ifname} exists already")
    ips, ranges, mac, ports, band = wishes(conf)
    host = f"fk{os.getpid():x}"
    if broken("leaks-on-failed-add"):
        ip(None, "link", "add", host, "type", "veth", "peer", "name", ifname, "netns", sandbox)
    with Books(conf) as state:
        address = choose(state, ips, ranges, ports)
        state[key(conf)] = {"ip": address, "host": host, "ports": ports}
    if broken("leaks-host-link"):
        ip(None, "link", "add", f"leak{os.getpid()}", "type", "bridge")
    if not broken("leaks-on-failed-add"):
        ip(None, "link", "add", host, "type", "veth", "peer", "name", ifname, "netns", sandbox)
    if mac and not broken("mac-ignored"):
        ip(sandbox, "link", "set", ifname, "address", mac)
    for where, name in ((sandbox, ifname), (None, host)):
        ip(where, "link", "set", name, "mtu", str(MTU), "up")
    ip(None, "address", "add", GATEWAY + "/32", "dev", host)
    ip(None, "route", "replace", address + "/32", "dev", host)
    if not broken("no-address"):
        ip(sandbox, "address", "add", address + "/32", "dev", ifname)
    default = ["route", "add", "default", "via", GATEWAY, "dev", ifname, "onlink"]
    # A second interface's comes behind the first one's.
    metric = 0 if "default" not in ip(sandbox, "route", "show", "default") else os.getpid()
    ip(sandbox, *default, "metric", str(metric))
    shape(sandbox, ifname, host, band)
    publish(address, ports)
    mine, theirs = links(sandbox)[ifname], links(None)[host]
    prev = prev if prev and not broken("ignores-prev-result") else {}
    interfaces = prev.get("interfaces", []) + [
        {"name": host, "mac": theirs["address"], "mtu": MTU},
        {"name": ifname, "mac": mine["address"], "mtu": MTU, "sandbox": os.environ["CNI_NETNS"]}]
    entry = {"version": "4", "address": address + "/32", "gateway": GATEWAY, "interface": len(interfaces) - 1}
    result = {"cniVersion": VERSION, "interfaces": interfaces, "ips": prev.get("ips", []) + [entry],
              "routes": prev.get("routes", []) + [{"dst": "0.0.0.0/0", "gw": GATEWAY}], "dns": dns(conf, prev)}
    return convert(result)


def check_prev(prev):
    if prev is None:
        return
    if not isinstance(prev, dict) or not isinstance(prev.get("ips", []), list):
        raise Refused(7, "prevResult is damaged")
    for entry in prev.get("ips", []):
        try:
            ipaddress.ip_interface(entry["address"])
        except ValueError as error:
            raise Refused(7, f"prevResult: {error}")


def dns(conf, prev):
    asked = (conf.get("runtimeConfig") or {}).get("dns")
    if asked:
        return {"nameservers": asked["servers"], "search": asked["searches"], "options": asked["options"]}
    return conf.get("dns") or prev.get("dns", {})


def convert(result):
    if broken("new-shape"):
        return dict(result, cniVersion="1.1.0")
    for entry in result["ips"]:
        if VERSION >= "1.0.0":
            entry.pop("version", None)
    if VERSION < "1.1.0":
        for entry in result["interfaces"]:
            entry.pop("mtu", None)
    return result


def shape(sandbox, ifname, host, band):
    if not band or broken("no-limit"):
        return
    for where, name, way in ((None, host, "ingress"), (sandbox, ifname, "egress")):
        tc = ["tc"] + (["-n", where] if where else [])
        run(*tc, "qdisc", "replace", "dev", name, "root", "tbf", "rate", f"{band[way + 'Rate']}bit",
            "burst", str(band[way + "Burst"] // 8), "latency", "50ms")


def publish(address, ports):
    if not ports or broken("no-dnat"):
        return
    rules = "".join(f"{proto} dport {there} dnat to {address}:{here};" for proto, there, here in ports)
    table = "fake_" + address.replace(".", "_")
    run("nft", f"table ip {table} {{ chain pre {{ type nat hook prerouting priority -100; {rules} }};\n"
        f"chain out {{ type nat hook output priority -100; {rules} }}; }}")


def forget(entry):
    if entry["host"]:
        ip(None, "link", "del", entry["host"], ok=False)
        run("nft", "delete table ip fake_" + entry["ip"].replace(".", "_"), ok=False)


def delete(conf):
    if broken("del-needs-prev-result") and not conf.get("prevResult", {}).get("ips"):
        raise Refused(7, "prevResult is missing")
    if not os.path.isdir(conf["stateDir"]):
        sandbox = os.path.basename(os.environ.get("CNI_NETNS", ""))
        ip(sandbox, "link", "del", os.environ["CNI_IFNAME"], ok=False)
        return
    with Books(conf) as state:
        entry = state.pop(key(conf), None)
        if broken("keeps-address") and entry:
            state[f"ghost|{time.time_ns()}|"] = entry
    if entry is None and broken("second-del-fails"):
        raise Refused(3, "unknown attachment")
    if entry:
        forget(entry)


def check(conf):
    if broken("check-always-ok"):
        return
    prev, ifname = conf.get("prevResult"), os.environ["CNI_IFNAME"]
    if not prev:
        raise Refused(7, "prevResult is missing")
    with Books(conf) as state:
        entry = state.get(key(conf))
    if entry is None:
        raise Refused(3, "unknown attachment")
    sandbox = netns()
    link = links(sandbox).get(ifname)
    if link is None:
        raise Refused(5, f"{ifname} is missing")
    own = next(i for i in prev["interfaces"] if i["name"] == ifname and i.get("sandbox"))
    if own.get("mac", link["address"]) != link["address"] or own.get("mtu", link["mtu"]) != link["mtu"]:
        raise Refused(5, f"{ifname} has another MAC or MTU")
    if not any(listed["address"].split("/")[0] == entry["ip"] for listed in prev["ips"]):
        raise Refused(5, f"{entry['ip']} is not in prevResult")
    if entry["host"]:
        host = links(None).get(entry["host"])
        if "UP" not in link["flags"] or host is None or "UP" not in host["flags"]:
            raise Refused(5, "a link is down")
        if f" {entry['ip']}/" not in ip(sandbox, "-o", "address", "show", "dev", ifname):
            raise Refused(5, f"{entry['ip']} is missing")
        if "default" not in ip(sandbox, "route", "show", "dev", ifname):
            raise Refused(5, "the default route is missing")
    if broken("prints-on-check"):
        print(json.dumps(prev))


def collect(conf):
    if "cni.dev/valid-attachments" not in conf:
        if broken("gc-without-list"):
            conf["cni.dev/valid-attachments"] = []
        else:
            raise Refused(7, "cni.dev/valid-attachments is missing")
    valid = {(entry["containerID"], entry["ifname"]) for entry in conf["cni.dev/valid-attachments"]}
    with Books(conf) as state:
        for name, entry in list(state.items()):
            network, container, ifname = name.split("|")
            listed = (container, ifname) in valid and not broken("gc-frees-all")
            foreign = network != conf["name"] and not broken("gc-frees-other-networks")
            if not listed and not foreign and not broken("gc-does-nothing"):
                forget(state.pop(name))
    if broken("prints-on-gc"):
        print("done")


def answer(verb):
    environment(verb)
    text = sys.stdin.buffer.read()
    conf = config(verb, text)
    if broken("logs-on-stdout") and verb == "ADD":
        print(f"{verb} begins")
    if verb == "VERSION":
        said = "1.0.0" if broken("version-not-echoed") else VERSION
        print(json.dumps({"cniVersion": said, "supportedVersions": VERSIONS}))
    elif verb == "ADD":
        print(json.dumps(add(conf)))
    else:
        {"DEL": delete, "CHECK": check, "GC": collect, "STATUS": lambda _: None}[verb](conf)


def main():
    try:
        answer(os.environ.get("CNI_COMMAND", ""))
    except Refused as error:
        code = 999 if broken("wrong-code") else error.code
        said = {"cniVersion": VERSION, "code": code, "msg": error.msg}
        if broken("error-without-version"):
            del said["cniVersion"]
        print(json.dumps(said), file=sys.stderr if broken("error-on-stderr") else sys.stdout)
        sys.exit(0 if broken("exit-0") else 1)


main()
