"""The link between process 0 and each other process of a run: lines of JSON over TCP, with a
thread a peer that listens, and notices when it is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, NoReturn

BEAT = 5.0  # seconds between two signs of life
SILENCE = 40.0  # seconds without one after which a process is taken for dead
_MOST_DIFFERENCES = 20


class OutOfStep(RuntimeError):
    """Processes stand at different places of the program."""


class _Peer:
    """The other end of a connection."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection, self.lines = connection, connection.makefile("r")
        self.number, self.name = 0, ""
        self.met: queue.Queue[Any] = queue.Queue()
        self.told: queue.Queue[Any] = queue.Queue()
        self._sending, self.is_heard = threading.Lock(), False

    def send(self, **message: Any) -> None:
        with self._sending:
            self.connection.sendall((json.dumps(message) + "\n").encode())

    def read(self) -> dict[str, Any]:
        line = self.lines.readline()
        if not line:
            raise ConnectionError("its connection was closed")
        return json.loads(line)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()
        if not self.is_heard:  # Whoever listens closes what it reads.
            self.lines.close()


class Link:
    """This process's connections: of process 0 one to each other, of these one to it.

    Raises:
        TimeoutError: a process did not come in `within` seconds.
        ValueError: processes differ in `alike`, or two of them have one number.
    """

    def __init__(
        self, address: str, count: int, number: int, alike: Mapping[str, Any], within: float
    ) -> None:
        host, _, port = address.rpartition(":")
        self.host, self.count, self.number, self.ending = host, count, number, False
        # As the others get them: tuples are lists in JSON.
        self._alike = json.loads(json.dumps({"processes": count, **alike}, default=str))
        self._name = f"process {number} ({socket.gethostname()}, pid {os.getpid()})"
        self._peers: dict[int, _Peer] = {}
        self._gone = threading.Lock()

        deadline = time.monotonic() + within
        if number == 0:
            self._gather(int(port), deadline, within)
        else:
            self._come(host, int(port), deadline, within)
        for peer in self._peers.values():
            peer.connection.settimeout(SILENCE)
            peer.is_heard = True
            threading.Thread(target=self._listen, args=(peer,), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    # --- The beginning.

    def _gather(self, port: int, deadline: float, within: float) -> None:
        differing: list[str] = []
        try:
            with socket.create_server(("", port)) as server:
                while len(self._peers) < self.count - 1:
                    server.settimeout(max(deadline - time.monotonic(), 0.01))
                    connection, _ = server.accept()
                    connection.settimeout(10.0)
                    peer = _Peer(connection)
                    hello = self._hello(peer)
                    if hello is None:
                        continue
                    peer.number, peer.name = hello["number"], hello["name"]
                    differing += self._differences(peer, hello["alike"])
                    if peer.number in self._peers or not 0 < peer.number < self.count:
                        differing.append(f"{peer.name} has a number that another has")
                        peer.number = -len(self._peers) - 1
                    self._peers[peer.number] = peer
        except TimeoutError:
            missing = sorted(set(range(1, self.count)) - set(self._peers))
            self._refuse(
                TimeoutError(
                    f"{self.count} processes were to come to {self.host}:{port} within "
                    f"{within:.0f} s, and {_in_words(missing)} did not. Start all of them with the "
                    "same command, at the same time, and see whether the machines reach each other."
                )
            )
        if differing:
            shown = differing[:_MOST_DIFFERENCES]
            more = (
                [f"and {len(differing) - len(shown)} more"] if len(differing) > len(shown) else []
            )
            self._refuse(
                ValueError(
                    "The processes of a run have to agree in all settings, and they do not: "
                    f"{'; '.join(shown + more)}. Start all of them with the same command and code."
                )
            )
        names = {0: self._name} | {peer.number: peer.name for peer in self._peers.values()}
        for peer in self._peers.values():
            peer.send(welcome=[names[n] for n in range(self.count)])
        self._names = names

    def _hello(self, peer: _Peer) -> dict[str, Any] | None:
        """What a process says that has come; None of something else that knocked at the port."""
        try:
            hello = peer.read()
            if isinstance(hello["number"], int) and isinstance(hello["alike"], dict):
                return hello
        except (OSError, ValueError, KeyError, TypeError):
            pass
        peer.close()
        return None

    def _differences(self, peer: _Peer, theirs: Mapping[str, Any]) -> list[str]:
        absent = "not set"
        return [
            f"{name} is {self._alike.get(name, absent)!r} in process 0 and "
            f"{theirs.get(name, absent)!r} in {peer.name}"
            for name in dict.fromkeys((*self._alike, *theirs))
            if self._alike.get(name, absent) != theirs.get(name, absent)
        ]

    def _refuse(self, error: Exception) -> NoReturn:
        for peer in self._peers.values():
            with contextlib.suppress(OSError):
                peer.send(refused=[type(error).__name__, str(error)])
            peer.close()
        raise error

    def _come(self, host: str, port: int, deadline: float, within: float) -> None:
        absent = TimeoutError(
            f"Process 0 was to listen at {host}:{port} within {within:.0f} s, and this one, process "
            f"{self.number}, did not reach it. Start all processes at the same time, with the "
            "address under which the machine of process 0 is reached by the others."
        )
        while True:
            try:
                connection = socket.create_connection((host, port), timeout=5.0)
                # A connection to an own port that is free, which a machine may make.
                if connection.getsockname() != connection.getpeername():
                    break
                connection.close()
            except OSError:
                pass
            if time.monotonic() > deadline:
                raise absent
            time.sleep(0.1)
        peer = _Peer(connection)
        connection.settimeout(within + 15.0)
        peer.send(number=self.number, name=self._name, alike=self._alike)
        try:
            answer = peer.read()
        except OSError as error:
            peer.close()
            raise absent from error
        if "refused" in answer:
            peer.close()
            kind, text = answer["refused"]
            raise {"TimeoutError": TimeoutError}.get(kind, ValueError)(text)
        self._names = dict(enumerate(answer["welcome"]))
        peer.name = self._names[0]
        self._peers[0] = peer

    # --- Talk.

    def name_of(self, number: int) -> str:
        """The process's number, machine and process id, in words."""
        return self._names[number]

    def meet(self, label: str, value: Any, within: float | None = None) -> list[Any]:
        """What all gave, by number.

        Raises:
            OutOfStep: another process is at another place.
            TimeoutError: some did not come in `within` seconds.
        """
        try:
            if self.number:
                self._send(0, meet=[label, value])
                found = self._peers[0].met.get(timeout=within)
            else:
                came = {n: self._peers[n].met.get(timeout=within) for n in sorted(self._peers)}
                came[0] = [label, value]
                labels = {n: one[0] for n, one in came.items()}
                apart = len(set(labels.values())) > 1
                every = [came[n][1] for n in range(self.count)]
                found = {"apart": labels} if apart else {"all": every}
                for peer in self._peers.values():
                    self._send(peer.number, met=found)
        except queue.Empty:
            raise TimeoutError(f"Other processes did not come to {label!r}.") from None
        if "apart" in found:
            where = ", ".join(f"process {n} is at {at!r}" for n, at in found["apart"].items())
            raise OutOfStep(f"The processes of a run have to take the same steps, but {where}.")
        return found["all"]

    def tell(self, value: Any) -> None:
        """Hands a value to all others."""
        for number in self._peers:
            self._send(number, tell=value)

    def hear(self) -> Any:
        """What process 0 told next."""
        return self._peers[0].told.get()

    def _send(self, number: int, **message: Any) -> None:
        try:
            self._peers[number].send(**message)
        except OSError as error:
            self._is_gone(self._peers[number], f"cannot be reached any more: {error}")

    # --- The watch.

    def _beat(self) -> None:
        while not self.ending:
            for peer in self._peers.values():
                # Whoever listens finds out.
                with contextlib.suppress(OSError):
                    peer.send(beat=1)
            time.sleep(BEAT)

    def _listen(self, peer: _Peer) -> None:
        try:
            while True:
                message = peer.read()
                if "meet" in message:
                    peer.met.put(message["meet"])
                elif "met" in message:
                    peer.met.put(message["met"])
                elif "tell" in message:
                    peer.told.put(message["tell"])
                elif "left" in message:
                    self._is_gone(peer, f"stopped with an error: {message['left']}")
                elif "gone" in message:
                    self._end(message["gone"])
        except TimeoutError:
            self._is_gone(peer, f"has not answered for {SILENCE:.0f} s")
        except (OSError, ValueError):
            self._is_gone(peer, "ended without a word: it was killed, or its machine is away")
        finally:
            peer.lines.close()

    def _is_gone(self, peer: _Peer, how: str) -> None:
        self._end(
            f"{peer.name} of {self.count} {how}. All processes stop; the same command goes on "
            "from the newest checkpoint."
        )

    def _end(self, text: str) -> None:
        """Ends this process, unless it is ending: its main thread may be in a collective that
        nobody will ever answer.
        """
        with self._gone:
            if self.ending:
                return
            # Before anything else: JAX ends a process too, in its own words, if process 0 is gone.
            os.write(2, f"lora-jax: error: {text}\n".encode())
            for peer in self._peers.values():
                if not self.number:
                    with contextlib.suppress(OSError):
                        peer.send(gone=text)
            os._exit(1)

    def fail(self, error: BaseException) -> None:
        """Tells the others that this process ends with an error."""
        # One that came of another's end is that one's to tell.
        time.sleep(1.0)
        with self._gone:
            self.ending = True
        for peer in self._peers.values():
            with contextlib.suppress(OSError):
                peer.send(left=f"{type(error).__name__}: {error}"[:2000])
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        # JAX ends the others in its own words once process 0 is away.
        if not self.number:
            time.sleep(1.0)
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self.ending = True
        for peer in self._peers.values():
            peer.close()


def _in_words(numbers: list[int]) -> str:
    named = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    return f"process{'es' if len(numbers) > 1 else ''} {named}"
