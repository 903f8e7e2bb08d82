"""The relays that egressd is held against: aiosmtpd within this process, and Debian's Postfix."""

import pwd
import re
import shutil
import subprocess
import time
from pathlib import Path

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult

USER = "egressd"
PASSWORD = "pass \"word\" w\u00f6rd"
REFUSED = "gone@acme.example"
PATIENCE = 180


class Handed:
    """One message as a relay has it."""

    def __init__(self, peer, sender, recipients, content, over_tls):
        self.peer, self.sender, self.recipients, self.content, self.over_tls = peer, sender, recipients, content, over_tls


class Handler:
    def __init__(self):
        self.handed = []

    async def handle_DATA(self, server, session, envelope):
        over_tls = session.ssl is not None or server.transport.get_extra_info("ssl_object") is not None
        self.handed.append(
            Handed(session.peer[0], envelope.mail_from, list(envelope.rcpt_tos), envelope.content, over_tls))
        return "250 2.0.0 taken as %d" % len(self.handed)

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address == REFUSED:
            return "550 5.1.1 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 yes"


class Implicit(Controller):
    def factory(self):
        # The TLS is around it: it has no STARTTLS to wait for.
        return SMTP(self.handler, authenticator=login, auth_require_tls=False, auth_required=True, decode_data=False)


def login(server, session, envelope, mechanism, data):
    right = data.login == USER.encode() and data.password == PASSWORD.encode()
    # What is not handled is answered with 535.
    return AuthResult(success=right, handled=False)


class Aiosmtpd:
    refusal = (550, "5.1.1 no such mailbox")

    def __init__(self, scheme, port, directory, context):
        self.handler = Handler()
        options = {"hostname": "127.0.0.1", "port": port}
        if scheme == "smtps":
            self.controller = Implicit(self.handler, ssl_context=context, **options)
        else:
            self.controller = Controller(self.handler, tls_context=context, require_starttls=True, authenticator=login,
                                         auth_required=True, decode_data=False, **options)
        self.controller.start()

    def last(self, recipients):
        return self.handler.handed[-1]

    def count(self):
        """Of messages, one for each of their recipients."""
        return sum(len(handed.recipients) for handed in self.handler.handed)

    def stop(self):
        self.controller.stop()


class Postfix:
    """With a configuration, a queue and mailboxes of its own. Its passwords are where Debian's looks for them: whoever
    runs this has a mount namespace of its own."""

    refusal = (554, f"5.7.1 <{REFUSED}>: Recipient address rejected: no such mailbox")

    def __init__(self, scheme, port, directory, context):
        self.directory = directory / "postfix"
        self.seen = set()
        directory.chmod(0o755)
        for name in ("conf", "queue", "data", "mail"):
            (self.directory / name).mkdir(parents=True)
        shutil.chown(self.directory / "data", "postfix")
        shutil.chown(self.directory / "mail", "nobody")
        nobody = pwd.getpwnam("nobody")
        (self.directory / "conf/main.cf").write_text(f"""
compatibility_level = 3.6
queue_directory = {self.directory}/queue
data_directory = {self.directory}/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
maillog_file = {self.directory}/log
maillog_file_prefixes = {self.directory}
myhostname = relay.test
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks =
mydestination =
alias_maps =
smtpd_tls_cert_file = {directory}/relay.pem
smtpd_tls_key_file = {directory}/relay.key
smtpd_tls_auth_only = yes
smtpd_tls_received_header = yes
smtpd_sasl_auth_enable = yes
smtpd_sasl_security_options = noanonymous
smtpd_relay_restrictions = permit_sasl_authenticated, reject
smtpd_recipient_restrictions =
    check_recipient_access inline:{{{{{REFUSED} = REJECT no such mailbox}}}}, permit_sasl_authenticated, reject
virtual_mailbox_domains = acme.example
virtual_mailbox_base = {self.directory}/mail
virtual_mailbox_maps = static:inbox/
virtual_uid_maps = static:{nobody.pw_uid}
virtual_gid_maps = static:{nobody.pw_gid}
virtual_minimum_uid = 1
virtual_mailbox_limit = 0
""")
        tls = "smtpd_tls_wrappermode=yes" if scheme == "smtps" else "smtpd_tls_security_level=encrypt"
        (self.directory / "conf/master.cf").write_text(f"""
127.0.0.1:{port} inet n - n - - smtpd -o {tls}
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
error unix - - n - - error
retry unix - - n - - error
virtual unix - n n - - virtual
postlog unix-dgram n - n - 1 postlogd
anvil unix - - n - 1 anvil
proxymap unix - - n - - proxymap
tlsmgr unix - - n 1000? 1 tlsmgr
""")
        passwords = self.directory / "passwords"
        subprocess.run(["saslpasswd2", "-p", "-c", "-f", passwords, "-u", "relay.test", USER], check=True,
                       input=PASSWORD.encode())
        shutil.chown(passwords, "postfix")
        Path("/etc/sasldb2").touch()
        subprocess.run(["mount", "--bind", passwords, "/etc/sasldb2"], check=True)
        self.master = subprocess.Popen(["postfix", "-c", self.directory / "conf", "start-fg"], stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL)
        end = time.monotonic() + PATIENCE
        while "daemon started" not in self.log():
            assert self.master.poll() is None and time.monotonic() < end, self.log()
            time.sleep(0.05)

    def log(self):
        log = self.directory / "log"
        return log.read_text() if log.exists() else ""

    def files(self):
        # A message is written elsewhere and moved here when it is whole.
        return set((self.directory / "mail/inbox/new").glob("*"))

    def last(self, recipients):
        """Every recipient has a copy of its own, which says whose it is; the message is what they share."""
        end = time.monotonic() + PATIENCE
        while len(new := self.files() - self.seen) < len(recipients):
            assert time.monotonic() < end, self.log()
            time.sleep(0.02)
        self.seen |= new
        copies = [re.fullmatch(rb"Return-Path: <(.*?)>\nX-Original-To: (.*?)\nDelivered-To: .*?\n(Received: .*?\n(?=\S))(.*)",
                               file.read_bytes(), re.DOTALL) for file in new]
        assert all(copies), [file.read_bytes()[:400] for file in new]
        assert len({copy[4] for copy in copies}) == 1, "copies of several messages"
        one = copies[0]
        peer = re.search(rb"\[([0-9.]+)\]", one[3])[1].decode()
        got = {copy[2].decode() for copy in copies}
        return Handed(peer, one[1].decode(), [name for name in recipients if name in got], one[4], b"using TLSv1" in one[3])

    def count(self):
        return len(self.files())

    def stop(self):
        self.master.terminate()
        self.master.wait(timeout=PATIENCE)
        warnings = [line for line in self.log().splitlines() if "warning" in line and "authentication fail" not in line]
        assert not warnings, warnings
        subprocess.run(["umount", "/etc/sasldb2"], check=True)
