// SPDX-License-Identifier: Apache-2.0
//! A pod whose root user lies: what it sends under another's name arrives nowhere and is counted, and honest packets by the
//! same socket arrive.

use crate::{have, lab_with};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};
use weft_lab::{Families, Lab, PodSpec, UpOptions, in_netns, wait_until};

const PORT: u16 = 7777;
/// Of each lie so many packets.
const EACH: u64 = 3;
const SOON: Duration = Duration::from_secs(5);
/// The overlay's port (RFC 7348).
const VXLAN: u16 = 4789;
const METRICS: u16 = 9157;
const PROBE_PORT: u16 = 51819;
const NOBODY: &str = "65534";

/// Sends each kind of frame; prints the kinds. Honest ones last.
const SCRIPT: &str = r#"
import json, socket, struct, sys
a = json.loads(sys.argv[1])
mac = lambda text: bytes.fromhex(text.replace(":", ""))
ip = lambda text: socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return struct.pack("!H", ~total & 0xffff)
own, gate, other = mac(a["mac"]), mac(a["gate"]), mac("02:00:00:00:00:99")
ether = lambda src, kind, body, dst=gate: dst + src + struct.pack("!H", kind) + body
def ip4(src, dst, body, proto=17):
    head = struct.pack("!BBHHHBB", 0x45, 0, 20 + len(body), 1, 0, 64, proto)
    return head + checksum(head + b"\0\0" + ip(src) + ip(dst)) + ip(src) + ip(dst) + body
def ip6(src, dst, body, proto, limit=64, before=b"", first=None):
    head = struct.pack("!IHBB", 6 << 28, len(before) + len(body), proto if first is None else first, limit)
    return head + ip(src) + ip(dst) + before + body
def udp(src, dst, text):
    head = struct.pack("!HHH", 5555, a["port"], 8 + len(text))
    pseudo = ip(src) + ip(dst) + struct.pack("!IHBB", 8 + len(text), 0, 0, 17)
    return head + checksum(pseudo + head + b"\0\0" + text) + text
def icmp6(src, dst, kind, body):
    pseudo = ip(src) + ip(dst) + struct.pack("!II", 4 + len(body), 58)
    return bytes([kind, 0]) + checksum(pseudo + bytes([kind, 0, 0, 0]) + body) + body
four = lambda src, text, sender=own: ether(sender, 0x800, ip4(src, a["to4"], udp(src, a["to4"], text)))
six = lambda src, text, sender=own: ether(sender, 0x86dd, ip6(src, a["to6"], udp(src, a["to6"], text), 17))
def nd(src, dst, kind, body, **more):
    return ether(own, 0x86dd, ip6(src, dst, icmp6(src, dst, kind, body), 58, limit=255, **more))
def arp(sender_mac, sender):
    return ether(own, 0x806, struct.pack("!HHBBH", 1, 0x800, 6, 4, 2) + sender_mac + ip(sender) + gate + ip("169.254.1.1"))
says = b"\x60\0\0\0" + ip(a["to6"]) + b"\2\1" + own
router = b"\x40\0\x07\x08" + bytes(8) + b"\1\1" + own
lies = {
    "source-mac": [four(a["own4"], b"mac", other), six(a["own6"], b"mac", other)],
    "source-address": [four(a["to4"], b"v4"), four("198.51.100.7", b"v4"), four("127.0.0.1", b"v4"), four("0.0.0.0", b"v4")],
    "source-address6": [six(a["to6"], b"v6"), six("2001:db8::7", b"v6"), six("::1", b"v6")],
    "arp-sender": [arp(own, a["to4"]), arp(other, a["own4"]), arp(own, "169.254.1.1")],
    "neighbour-sender": [nd(a["own6"], "fe80::1", 136, says), nd(a["own6"], a["to6"], 136, says)],
    "router-message": [nd(a["link6"], "ff02::1", 134, router), nd(a["link6"], "fe80::1", 134, router),
                       nd(a["link6"], a["to6"], 137, bytes(4) + ip(a["to6"]) + ip("fe80::1"))],
    "extension-headers": [nd(a["own6"], "fe80::1", 136, says, before=b"\x3a\0\1\4\0\0\0\0", first=0)],
    "ether-type": [ether(own, 0x8100, struct.pack("!HH", 5, 0x800) + ip4(a["own4"], a["to4"], udp(a["own4"], a["to4"], b"tag"))),
                   ether(own, 0x88cc, b"\0" * 46)],
    "malformed": [ether(own, 0x800, b"\x45"), ether(own, 0x86dd, b"\x60" + bytes(10))],
}
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
raw.bind((a["dev"], 0))
for frames in lies.values():
    for frame in frames:
        for _ in range(a["each"]):
            raw.send(frame)
for frame in [four(a["own4"], b"honest"), six(a["own6"], b"honest")]:
    raw.send(frame)
print(json.dumps({reason: len(frames) * a["each"] for reason, frames in lies.items()}))
"#;

/// Speaks the overlay's protocol to a node: a VXLAN header, and in it a datagram from one pod to another.
const TUNNEL: &str = r#"
import json, socket, struct, sys
a = json.loads(sys.argv[1])
mac = lambda text: bytes.fromhex(text.replace(":", ""))
text = b"tunnel"
body = struct.pack("!HHHH", 5555, a["port"], 8 + len(text), 0) + text
head = struct.pack("!BBHHHBB", 0x45, 0, 20 + len(body), 1, 0, 64, 17)
ends = socket.inet_aton(a["as4"]) + socket.inet_aton(a["to4"])
total = sum(struct.unpack("!10H", head + b"\0\0" + ends))
total = (total & 0xffff) + (total >> 16)
inner = mac(a["vtep"]) + mac("02:00:00:00:00:99") + b"\x08\0" + head + struct.pack("!H", ~total & 0xffff) + ends + body
packet = struct.pack("!II", 8 << 24, a["vni"] << 8) + inner
out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for node in a["nodes"]:
    for _ in range(a["each"]):
        out.sendto(packet, (node, a["vxlan"]))
"#;

#[test]
fn what_a_pod_sends_under_another_name_arrives_nowhere() -> Result<()> {
    spoof("tcx")
}

#[test]
fn what_a_pod_sends_under_another_name_arrives_nowhere_with_clsact() -> Result<()> {
    spoof("clsact")
}

fn spoof(mode: &str) -> Result<()> {
    let Some(lab) = cheats_lab(&["--datapath-attach", mode])? else { return Ok(()) };
    let liar = lab.pod_add(&PodSpec::new("n1", "liar"))?;
    let known = || lab.exec("n1", &["ip", "neigh", "show", "nud", "permanent"])?.text("ip neigh");
    // The other node is there, with both its addresses: what comes later came from the pod.
    let met = wait_until(SOON, || Ok(known()?.matches("weft.vxlan").count() == 2))?;
    ensure!(met, "n1 does not know n2: {}", known()?);
    for (node, name) in [("n1", "near"), ("n2", "far")] {
        let victim = lab.pod_add(&PodSpec::new(node, name))?;
        reach(&lab, "liar", &victim.ips)?;
        let heard = victim.ips.iter().map(|ip| listen(&victim.netns, *ip)).collect::<Result<Vec<_>>>()?;
        let neighbours = lab.exec("n1", &["ip", "neigh", "show", "nud", "permanent"])?.text("ip neigh")?;
        let before = drops(&lab)?;
        let about = json!({
            "dev": "eth0", "port": PORT, "each": EACH, "mac": mac(&lab, "liar", "eth0")?, "gate": gate(&lab)?,
            "own4": liar.ips[0], "own6": liar.ips[1], "link6": link_local(&lab)?,
            "to4": victim.ips[0], "to6": victim.ips[1],
        });
        let sent = lab.exec("liar", &["python3", "-c", SCRIPT, &about.to_string()])?;
        let sent: BTreeMap<String, u64> = sent.json("the liar's script")?;
        for socket in &heard {
            assert_eq!(
                until_honest(socket)?,
                only_honest(),
                "{name} heard a lie on {:?}",
                socket.local_addr()
            );
        }
        let after = drops(&lab)?;
        for (reason, count) in &sent {
            let dropped = after.get(reason).unwrap_or(&0) - before.get(reason).unwrap_or(&0);
            ensure!(dropped >= *count, "{reason}: {dropped} of {count} were dropped ({after:?})");
        }
        let now = lab.exec("n1", &["ip", "neigh", "show", "nud", "permanent"])?.text("ip neigh")?;
        assert_eq!(now, neighbours, "the node believed the pod");
    }
    for to in ["near", "far"] {
        for ip in lab.pod(to)?.ips {
            assert!(lab.exec("liar", &["ping", "-c1", "-W2", &ip.to_string()])?.ok(), "{to} {ip}");
        }
    }
    lab.down()
}

#[test]
fn a_pod_reaches_neither_the_tunnel_nor_what_is_the_operator_s() -> Result<()> {
    if !have("curl", "cheats") || !have("setpriv", "cheats") {
        return Ok(());
    }
    let Some(lab) = cheats_lab(&[])? else { return Ok(()) };
    let state = lab.state()?;
    let near = lab.pod_add(&PodSpec::new("n1", "near"))?;
    lab.pod_add(&PodSpec::new("n1", "liar"))?;
    let far = lab.pod_add(&PodSpec::new("n2", "far"))?;
    reach(&lab, "near", &far.ips)?;
    let nodes = [state.node("n1")?.underlay_ip, state.node("n2")?.underlay_ip];
    let heard = listen(&far.netns, far.ips[0])?;
    let vni: Vec<Value> = lab.exec("n2", &["ip", "-j", "-d", "link", "show", "weft.vxlan"])?.json("ip")?;
    let about = json!({
        "port": PORT, "each": EACH, "vxlan": VXLAN, "vni": vni[0]["linkinfo"]["info_data"]["id"], "nodes": nodes,
        "vtep": mac(&lab, "n2", "weft.vxlan")?, "as4": near.ips[0], "to4": far.ips[0],
    });
    // The forged packet is one that the other node takes: a node may send it.
    lab.exec("n1", &["python3", "-c", TUNNEL, &about.to_string()])?.text("the tunnel's script")?;
    let taken = (0..EACH).map(|_| receive(&heard)).collect::<Result<Vec<_>>>()?;
    assert_eq!(taken, ["tunnel"; EACH as usize], "the forgery is no good one");

    let before = overlay_drops(&lab)?;
    lab.exec("liar", &["python3", "-c", TUNNEL, &about.to_string()])?.text("the tunnel's script")?;
    let honest = in_netns(&near.netns, || Ok(UdpSocket::bind((near.ips[0], 0))?))?;
    honest.send_to(b"honest", (far.ips[0], PORT))?;
    assert_eq!(until_honest(&heard)?, only_honest(), "a pod spoke through the tunnel");
    assert_eq!(overlay_drops(&lab)? - before, EACH * nodes.len() as u64);

    // Nor where the nodes ask each other what fits through.
    let before = overlay_drops(&lab)?;
    let probed = lab.status("n1")?.node.overlay.context("n1 has no overlay address")?;
    let asks = in_netns(&near.netns, || Ok(UdpSocket::bind((near.ips[0], 0))?))?;
    for _ in 0..EACH {
        asks.send_to(b"what fits?", (probed, PROBE_PORT))?;
    }
    let dropped = wait_until(SOON, || Ok(overlay_drops(&lab)? >= before + EACH))?;
    ensure!(dropped, "a pod's words reached the probes' socket");

    // Metrics are on the node's loopback; the API is root's.
    let overlay = lab.status("n1")?.node.overlay.context("n1 has no overlay address")?.to_string();
    for host in nodes.map(|ip| ip.to_string()).into_iter().chain([
        overlay,
        "169.254.53.53".into(),
        "169.254.1.1".into(),
        "[fd00:53::53]".into(),
        "127.0.0.1".into(),
    ]) {
        let url = format!("http://{host}:{METRICS}/metrics");
        let out = lab.exec("liar", &["curl", "-sS", "--connect-timeout", "1", &url])?;
        assert!(matches!(out.code, Some(7 | 28)), "{url}: {:?} {}", out.code, out.stderr);
    }
    assert!(lab.exec("n1", &["curl", "-sSf", &format!("http://127.0.0.1:{METRICS}/metrics")])?.ok());
    let socket = state.node("n1")?.socket().display().to_string();
    let user = ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"];
    let curl = ["curl", "-sS", "--unix-socket", &socket, "http://netd/v1/status"];
    let refused = lab.exec("liar", &[&user[..], &curl].concat())?;
    assert_eq!(refused.code, Some(7), "{}", refused.stdout);
    lab.down()
}

fn cheats_lab(netd_args: &[&str]) -> Result<Option<Lab>> {
    if !have("python3", "cheats") {
        return Ok(None);
    }
    let netd_args = netd_args.iter().map(ToString::to_string).collect();
    let options = UpOptions::new(&Lab::unique_name("cheats"));
    lab_with(UpOptions { nodes: 2, families: Families::Dual, overlay: "vxlan".into(), netd_args, ..options })
}

/// Another node knows a pod's block a moment after its ADD: an honest packet that is sent once must not come before that.
fn reach(lab: &Lab, from: &str, ips: &[IpAddr]) -> Result<()> {
    for ip in ips {
        let ping = || Ok(lab.exec(from, &["ping", "-c1", "-W1", &ip.to_string()])?.ok());
        ensure!(wait_until(SOON, ping)?, "{from} does not reach {ip}");
    }
    Ok(())
}

fn listen(netns: &str, ip: IpAddr) -> Result<UdpSocket> {
    let socket = in_netns(netns, || Ok(UdpSocket::bind(SocketAddr::new(ip, PORT))?))?;
    socket.set_read_timeout(Some(SOON))?;
    Ok(socket)
}

fn receive(socket: &UdpSocket) -> Result<String> {
    let mut buffer = [0; 100];
    let (length, _) = socket.recv_from(&mut buffer).context("nothing came")?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// What came, up to the honest datagram, which was sent last.
fn until_honest(socket: &UdpSocket) -> Result<BTreeSet<String>> {
    let (mut heard, started) = (BTreeSet::new(), Instant::now());
    while !heard.contains("honest") && started.elapsed() < SOON {
        heard.insert(receive(socket)?);
    }
    Ok(heard)
}

fn only_honest() -> BTreeSet<String> {
    BTreeSet::from(["honest".to_owned()])
}

/// Packets of pods that n1 dropped, by reason.
fn drops(lab: &Lab) -> Result<BTreeMap<String, u64>> {
    let url = format!("http://127.0.0.1:{METRICS}/metrics");
    let text = lab.exec("n1", &["curl", "-sSf", &url])?.text("metrics")?;
    let of_line = |line: &str| {
        let (reason, count) = line.strip_prefix("weft_datapath_drops_total{reason=\"")?.split_once("\"} ")?;
        Some((reason.to_owned(), count.parse().ok()?))
    };
    Ok(text.lines().filter_map(of_line).collect())
}

/// Packets to the overlay's port that n1 dropped.
fn overlay_drops(lab: &Lab) -> Result<u64> {
    let listed: Value =
        lab.exec("n1", &["nft", "-j", "list", "counter", "inet", "weft", "overlay_port"])?.json("nft")?;
    let counters = listed["nftables"].as_array().into_iter().flatten();
    counters.filter_map(|item| item["counter"]["packets"].as_u64()).next().context("no counter")
}

/// The MAC of a link of a pod or node.
fn mac(lab: &Lab, member: &str, device: &str) -> Result<String> {
    let link: Vec<Value> = lab.exec(member, &["ip", "-j", "link", "show", device])?.json("ip link")?;
    Ok(link[0]["address"].as_str().context("no MAC")?.to_owned())
}

/// The host end's MAC, as the liar knows it.
fn gate(lab: &Lab) -> Result<String> {
    let known: Vec<Value> =
        lab.exec("liar", &["ip", "-j", "neigh", "show", "169.254.1.1"])?.json("ip neigh")?;
    Ok(known[0]["lladdr"].as_str().context("no gateway")?.to_owned())
}

fn link_local(lab: &Lab) -> Result<String> {
    let all: Vec<Value> = lab
        .exec("liar", &["ip", "-j", "-6", "address", "show", "scope", "link", "dev", "eth0"])?
        .json("ip")?;
    let mut infos = all.iter().flat_map(|link| link["addr_info"].as_array().into_iter().flatten());
    Ok(infos.find_map(|info| info["local"].as_str()).context("no link-local address")?.to_owned())
}
