# SPDX-License-Identifier: Apache-2.0
# systemd's part towards one service: it keeps the descriptors that the service sends (sd_notify(3): FDSTORE, FDNAME), and passes
# them on when it starts it anew (sd_listen_fds(3)). Usage: FOLDER PROGRAM ARGS…  While FOLDER/away exists the service is dead
# by SIGKILL. Prints how many descriptors each start got, and "killed".
import array, fcntl, os, select, signal, socket, sys

folder, program = sys.argv[1], sys.argv[2:]
away, path = os.path.join(folder, "away"), os.path.join(folder, "notify")
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.bind(path)
store = {}


def start():
    kept = [(name, fd) for name, fds in store.items() for fd in fds]
    print(len(kept), flush=True)
    pid = os.fork()
    if pid:
        return pid
    # Out of the way first, so that none is overwritten by another.
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 300) for _, fd in kept]
    for at, fd in enumerate(high):
        os.dup2(fd, 3 + at)
    os.closerange(3 + len(kept), 1024)
    environment = dict(os.environ, NOTIFY_SOCKET=path)
    if kept:
        names = ":".join(name for name, _ in kept)
        environment.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(kept)), LISTEN_FDNAMES=names)
    os.execve(program[0], program, environment)


def told():
    data, control, _, _ = notify.recvmsg(4096, socket.CMSG_SPACE(253 * 4))
    fds = array.array("i")
    for level, kind, raw in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(raw[: len(raw) - len(raw) % fds.itemsize])
    words = dict(line.split("=", 1) for line in data.decode().splitlines())
    name = words.get("FDNAME", "stored")
    if words.get("FDSTOREREMOVE") == "1":
        for fd in store.pop(name, []):
            os.close(fd)
    elif words.get("FDSTORE") == "1":
        store.setdefault(name, []).extend(fds)


service = start()
while True:
    if select.select([notify], [], [], 0.02)[0]:
        told()
    elif os.path.exists(away) and service:
        os.kill(service, signal.SIGKILL)
        os.waitpid(service, 0)
        service = 0
        print("killed", flush=True)
    elif not os.path.exists(away) and not service:
        service = start()
