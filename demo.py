#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["bottle>=0.13.4", "pyjwt[crypto]>=2.15.1", "granian>=2.8", "msgspec>=0.22"]
# ///
"""The whole main job in a minute, offline: a stand-in for an Auth0 tenant, the API, and the cron job.

    uv run demo.py           shows every step, then keeps serving for you to try
    uv run demo.py --exit    stops after the steps

A contractor's Toggl export goes through sync.py into the API's database: once, a second time, and with a
correction. `Tenant` is the stand-in; the tests use it too, and let it fail in all the ways an issuer can fail.
"""

import argparse
import collections
import contextlib
import hashlib
import html
import http.server
import io
import itertools
import json
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

HERE = pathlib.Path(__file__).resolve().parent
AUDIENCE = "https://api.exampleco.com/timesheets"
CLIENT_ID, CLIENT_SECRET = "TimesheetsImportJob", "demo-secret-never-a-real-one"
EMAIL = "https://api.exampleco.com/email"  # the claim that names a person, as USER_CLAIM says
JWKS, TOKEN = "/.well-known/jwks.json", "/oauth/token"
APP_ID = "TimesheetsApp"  # the client id of the page for people
HOURS = "read:timesheets create:timesheets delete:timesheets"
PEOPLE = {  # who can sign in: how they are called, their e-mail, and what their role permits
    "jane": ("Jane, a contractor", "jane@contractor.example", HOURS),
    "omar": ("Omar, a contractor", "omar@contractor.example", HOURS),
    "mira": ("Mira, their manager", "mira@exampleco.com", f"{HOURS} approve:timesheets"),
    "carl": ("Carl, the payroll clerk", "carl@exampleco.com", "report:timesheets"),
}

# ---- Tenant: signs tokens, publishes keys, and fails on demand ----


class SigningKey:
    """An RSA key pair: `private` signs, `jwk` is what the key set shows of it."""

    def __init__(self, kid: str) -> None:
        self.kid, self.private = kid, rsa.generate_private_key(public_exponent=65537, key_size=2048)
        public = jwt.algorithms.RSAAlgorithm.to_jwk(self.private.public_key(), as_dict=True)
        self.jwk = {**public, "kid": kid, "alg": "RS256", "use": "sig"}


class Tenant(contextlib.AbstractContextManager["Tenant"]):
    """A local Auth0 tenant: an issuer that serves its key set and the token endpoint on a free loopback port."""

    def __init__(self, audience: str = AUDIENCE) -> None:
        self.audience, self.clients = audience, {CLIENT_ID: (CLIENT_SECRET, "batch:upload")}
        self.keys: list[SigningKey] = []
        self.published: list[Any] = []
        self.requests: collections.Counter[str] = collections.Counter()
        self.faults: dict[str, itertools.repeat[str]] = {}
        self.callbacks: list[str] = []  # where the page for people may be; Auth0's Allowed Callback and Logout URLs
        self.codes: dict[str, dict[str, str]] = {}  # authorization codes not used yet, each with what was asked
        self.lifetime = 7_200  # seconds that a person's token is good for
        self.healed = threading.Event()
        self.rotate()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (Answers,), {"tenant": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        self.env = {"AUTH0_DOMAIN": self.url, "AUTH0_AUDIENCE": audience}  # for whoever is to trust it
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def __exit__(self, *_: object) -> None:
        """Stop serving; slow answers under way are let go."""
        self.heal()
        self.server.shutdown()
        self.server.server_close()

    def sign(self, claims: Any, key: SigningKey | None = None, **header: Any) -> str:
        """A token with exactly these claims; a header member given as None is left out."""
        key = key or self.keys[-1]
        header = {"alg": "RS256", "typ": "JWT", "kid": key.kid, **header}
        parts = [{name: value for name, value in header.items() if value is not None}, claims]
        message = b".".join(jwt.utils.base64url_encode(json.dumps(part).encode()) for part in parts)
        signature = jwt.algorithms.RSAAlgorithm(jwt.algorithms.RSAAlgorithm.SHA256).sign(message, key.private)
        return (message + b"." + jwt.utils.base64url_encode(signature)).decode()

    def token(self, scope: Any = "", **claims: Any) -> str:
        """A token as Auth0 issues it, good for a day; a claim given as None is left out."""
        now = int(time.time())
        usual = {"iss": self.url, "aud": self.audience, "iat": now, "exp": now + 86_400, "sub": "auth0|1", "azp": "spa"}
        claims = {**usual, "scope": scope, **claims}
        return self.sign({name: value for name, value in claims.items() if value is not None})

    def machine(self, scope: Any = "batch:upload", client: str = CLIENT_ID, **claims: Any) -> str:
        """A token from the client-credentials grant: it speaks for a program."""
        usual = {"sub": f"{client}@clients", "azp": client, "gty": "client-credentials"}
        return self.token(scope, **{**usual, **claims})

    def person(self, who: str, scope: str, **claims: Any) -> str:
        """A token that speaks for a person, who has an id of the tenant's and an e-mail address."""
        number = hashlib.sha256(who.encode()).hexdigest()[:24]
        return self.token(scope, **{"sub": f"auth0|{number}", EMAIL: who, **claims})

    def rotate(self, keep: bool = True) -> None:
        """Sign with a new key from now on; withdraw all older ones unless `keep`."""
        self.keys.append(SigningKey(f"key-{len(self.keys) + 1}"))
        self.published[:] = [*(self.published if keep else ()), self.keys[-1].jwk]

    def revoke(self, kid: str) -> None:
        """Withdraw a key from the key set."""
        self.published[:] = [jwk for jwk in self.published if jwk["kid"] != kid]

    def fail(self, path: str, fault: str, times: int | None = None) -> None:
        """Answer `path` with a fault, `times` often or until heal().

        Faults: 500 html empty huge redirect slow drip drip-head reset.
        """
        self.healed.clear()
        self.faults[path] = itertools.repeat(fault, times) if times else itertools.repeat(fault)

    def heal(self) -> None:
        """No more faults, and those under way end."""
        self.faults.clear()
        self.healed.set()

    def grant(self, form: dict[str, str]) -> tuple[int, dict[str, Any]]:
        """Judge a token request -> (status, answer), in Auth0's own words (RFC 6749 section 4.4)."""
        if form.get("grant_type") == "authorization_code":
            return self.exchange(form)
        secret, scope = self.clients.get(form.get("client_id", ""), (None, None))
        if form.get("grant_type") != "client_credentials":
            return 403, {"error": "unauthorized_client", "error_description": "Grant type not allowed for the client."}
        if secret is None or form.get("client_secret") != secret:
            return 401, {"error": "access_denied", "error_description": "Unauthorized"}
        if "audience" not in form:  # Auth0 then issues an opaque token for its own use
            return 200, {"access_token": os.urandom(24).hex(), "expires_in": 86_400, "token_type": "Bearer"}
        if form["audience"] != self.audience:
            return 403, {"error": "access_denied", "error_description": f"Service not found: {form['audience']}"}
        if scope is None:
            missing = f'Client is not authorized to access "{self.audience}". You need to create a "client-grant".'
            return 403, {"error": "access_denied", "error_description": missing}
        token = self.machine(scope or None, form["client_id"])
        granted = {"scope": scope} if scope else {}
        return 200, {"access_token": token, "expires_in": 86_400, "token_type": "Bearer", **granted}

    def authorize(self, asked: dict[str, str], who: str) -> tuple[int, str]:
        """Judge a sign-in (RFC 6749 section 4.1.1) -> 302 and where the browser goes, or another status and a page."""
        client, back, audience = (asked.get(name) for name in ("client_id", "redirect_uri", "audience"))
        if client != APP_ID:
            return 403, page("Oops!, something went wrong", f"Unknown client: {client}")
        if back not in self.callbacks:
            return 403, page("Oops!, something went wrong", f"Callback URL mismatch. {back} is not allowed.")
        if audience != self.audience:
            answer = {"error": "access_denied", "error_description": f"Service not found: {audience}"}
        elif (asked.get("response_type"), asked.get("code_challenge_method")) != ("code", "S256"):
            answer = {"error": "invalid_request", "error_description": "It takes a code, with PKCE by S256"}
        elif who == "nobody":
            answer = {"error": "access_denied", "error_description": "User did not authorize the request"}
        elif who in PEOPLE:
            answer = {"code": os.urandom(24).hex()}
            self.codes[answer["code"]] = asked | {"who": who}
        elif asked.get("prompt") == "none":
            answer = {"error": "login_required", "error_description": "Login required"}
        else:
            return 200, page("Whom do you sign in as?", "A real tenant asks for a password here.", asked)
        return 302, f"{back}?{urllib.parse.urlencode(answer | {'state': asked.get('state', '')})}"

    def exchange(self, form: dict[str, str]) -> tuple[int, dict[str, Any]]:
        """Judge a code, which is good once (RFC 6749 section 4.1.3, RFC 7636 section 4.6) -> (status, answer)."""
        asked = self.codes.pop(form.get("code", ""), {})
        verifier = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        if not asked or form.get("client_id") != APP_ID:
            return 403, {"error": "invalid_grant", "error_description": "Invalid authorization code"}
        if asked["redirect_uri"] != form.get("redirect_uri"):
            return 403, {"error": "invalid_grant", "error_description": "The redirect URI is wrong."}
        if asked.get("code_challenge") != jwt.utils.base64url_encode(verifier).decode():
            return 403, {"error": "invalid_grant", "error_description": "Failed to verify code verifier"}
        _, email, permitted = PEOPLE[asked["who"]]
        scope = " ".join(word for word in asked.get("scope", "").split() if word in ["openid", *permitted.split()])
        token = self.person(email, scope, azp=APP_ID, exp=int(time.time()) + self.lifetime)
        answer = {"access_token": token, "id_token": self.person(email, "", aud=APP_ID), "scope": scope}
        return 200, answer | {"expires_in": self.lifetime, "token_type": "Bearer"}


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,"><style>
:root {{ color-scheme: light dark; font: 1.1rem/1.5 system-ui, sans-serif }}
main {{ max-width: 24rem; margin: 15vh auto }}
a {{ display: block; margin: .6rem 0; padding: .6rem 1rem; border: 1px solid; border-radius: .5rem }}
</style><main><h1>{title}</h1><p>{text}</p>{links}</main></html>"""


def page(title: str, text: str, asked: dict[str, str] | None = None) -> str:
    """A page of the tenant's; with what a sign-in `asked`, everybody who can be chosen."""
    choices = {who: name for who, (name, *_) in PEOPLE.items()} | {"nobody": "Cancel"} if asked else {}
    queries = [(urllib.parse.urlencode({**(asked or {}), "as": who}), name) for who, name in choices.items()]
    links = "".join(f'<a href="/authorize?{html.escape(query)}">{name}</a>' for query, name in queries)
    return PAGE.format(title=title, text=html.escape(text), links=links)


# What faults that are answers have in place of status and body; the body is repeated.
ODD = {"500": (500, b"{}", 1), "html": (200, b"<html>hello</html>", 1), "empty": (200, b"{}", 1)}
ODD |= {"redirect": (302, b"{}", 1), "huge": (200, b" ", 2**26), "drip": (200, b" ", 60)}


class Answers(http.server.BaseHTTPRequestHandler):
    """The tenant's HTTP side."""

    tenant: Tenant

    def do_GET(self) -> None:
        """Key set and discovery for programs; signing in and out for browsers, whose session is a cookie."""
        path, _, query = self.path.partition("?")
        asked, url = dict(urllib.parse.parse_qsl(query)), self.tenant.url
        session = re.search(r"who=(\w+)", self.headers.get("Cookie", ""))
        who = asked.pop("as", session[1] if session else "")
        discovery = {"issuer": url, "jwks_uri": url + JWKS[1:], "token_endpoint": url + TOKEN[1:]}
        discovery["authorization_endpoint"] = url + "authorize"
        pages = {JWKS: {"keys": self.tenant.published}, "/.well-known/openid-configuration": discovery}
        if path == "/authorize":
            self.answer(*self.tenant.authorize(asked, who), who if who in PEOPLE else "")
        elif path == "/v2/logout" and asked.get("returnTo") in self.tenant.callbacks:
            self.answer(302, asked["returnTo"])
        else:
            self.answer(200 if path in pages else 404, pages.get(path, {}))

    def do_POST(self) -> None:
        """The token endpoint; takes a form or JSON, as Auth0 does."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        is_json = "json" in self.headers.get("Content-Type", "")
        form = json.loads(body) if is_json else dict(urllib.parse.parse_qsl(body))
        self.answer(*(self.tenant.grant(form) if self.path == TOKEN else (404, {})))

    def answer(self, status: int, value: Any, who: str = "") -> None:
        """Send JSON, a text as HTML or as where to go, or the scripted fault; `who` is signed in from then on."""
        path, as_text = self.path.partition("?")[0], isinstance(value, str)
        self.tenant.requests[path] += 1
        fault = next(self.tenant.faults.get(path, iter(())), None)
        part = value.encode() if as_text else json.dumps(value).encode()
        status, part, times = ODD.get(fault or "", (status, part, 1))
        if fault == "reset":  # to linger 0 s at closing sends RST in place of FIN
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            return
        if fault == "slow":
            self.tenant.healed.wait(60)
        with contextlib.suppress(OSError):
            while fault == "drip-head" and not self.tenant.healed.wait(0.2):
                self.wfile.write(b"x")
            self.send_response(status)
            self.send_header("Content-Type", "text/html; charset=utf-8" if as_text else "application/json")
            self.send_header("Content-Length", str(len(part) * times))
            self.send_header("Access-Control-Allow-Origin", "*")
            if status == 302:
                self.send_header("Location", self.tenant.url + "elsewhere" if fault else value)
                self.send_header("Set-Cookie", f"who={who}; Path=/; HttpOnly; SameSite=Lax")
            self.end_headers()
            while fault == "drip" and not self.tenant.healed.wait(1):
                self.wfile.write(b" ")
            self.wfile.write(part * times)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


# ---- The walk: export, upload, again, corrected, approved, reported ----

HEAD = "User,Email,Client,Project,Task,Description,Billable,Start date,Start time,End date,End time,Duration,Tags"
WORK = [  # who, day of November 2026, start, end, project; the 31st is the row that cannot be right
    *(("Jane", day, "09:00", "16:30", "StoreZero") for day in (16, 17, 18, 19, 20)),
    *(("Omar", day, "08:30", "12:30", "StoreZero") for day in (16, 17, 18)),
    *(("Omar", day, "13:00", "21:15", "Website") for day in (16, 17)),
    ("Omar", 31, "09:00", "17:00", "Website"),
]
LATER = [("Jane", 16, "09:00", "17:30", "StoreZero"), *WORK[1:5], *WORK[6:9]]  # one corrected, one deleted,
LATER += [("Omar", 18, "13:00", "21:15", "Website"), ("Omar", 20, "09:00", "17:00", "Website")]  # one moved, one mended
ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
# Loopback is asked directly: a company's http_proxy would be asked for it otherwise, and refuse.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def export(work: list[tuple[Any, ...]]) -> str:
    """A Toggl export as its users download it, with the byte-order mark that Toggl starts its files with."""
    row = "{0},{1}@contractor.example,Big,{5},,,Yes,2026-11-{2},{3}:00,2026-11-{2},{4}:00,,\n"
    rows = [row.format(who, who.lower(), *rest) for who, *rest in work]
    return "\ufeff" + HEAD + "\n" + "".join(rows)


def say(title: str, *lines: str) -> None:
    """A heading, and what there is to know."""
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() and "NO_COLOR" not in os.environ else ("", "")
    print(f"\n{bold}{title}{plain}", *lines, sep="\n  ", flush=True)


def start(stack: contextlib.ExitStack, command: list[str], **how: Any) -> subprocess.Popen[str]:
    """One of the programs beside this file; it ends when the stack does. A signal waits until the stack knows of it."""
    held = []
    before = {number: signal.signal(number, lambda number, _: held.append(number)) for number in ENDING}
    command = [sys.executable, str(HERE / command[0]), *command[1:]]
    program = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **how))
    stack.callback(program.terminate)
    for number, handler in before.items():
        signal.signal(number, handler)
    for number in held:
        signal.raise_signal(number)
    return program


def start_api(tenant: Tenant, folder: pathlib.Path, stack: contextlib.ExitStack) -> str:
    """`python timesheets.py` on a free port -> its address, once it answers."""
    # Nothing else is handed down: a DATABASE_URL or a proxy of the caller's would change what is shown.
    env = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ} | tenant.env
    env |= {"USER_CLAIM": EMAIL, "APP_CLIENT_ID": APP_ID, "DATABASE_URL": str(folder / "timesheets.db"), "PORT": "0"}
    log = stack.enter_context((folder / "api.log").open("w"))
    # In a session of its own Ctrl-C does not reach it: two signals at once can lock it up (seen with Granian 2.8).
    api = start(stack, ["timesheets.py"], env=env, stderr=log, start_new_session=True)
    banner, deadline = (api.stdout or io.StringIO()).readline().strip(), time.monotonic() + 10
    found = re.search(r"http://[\d.:]+", banner)
    while found and api.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            DIRECT.open(found[0] + "/health", timeout=5).close()
            say("The API is up.", banner)
            return found[0]
        time.sleep(0.05)
    last = (folder / "api.log").read_text().strip().splitlines()[-1:] or ["it said nothing."]
    usually = "Usually a package is missing: uv run demo.py installs what the top of this file names."
    raise SystemExit(f"The API did not start: {last[0]}\n{usually}")


def sync(env: dict[str, str], folder: pathlib.Path, expected: int, *arguments: str) -> None:
    """Run the cron job as cron would, and show what it says; the walk ends here if it is not what was `expected`."""
    print("  $ python sync.py", *arguments, flush=True)
    with contextlib.ExitStack() as stack:
        job = start(stack, ["sync.py", *arguments], env=env, cwd=folder, stderr=subprocess.STDOUT)
        for line in job.stdout or ():
            print("   ", line, end="")
        status = job.wait()
    print("    exit status", status)
    if status != expected:
        raise SystemExit(f"The cron job should have ended with status {expected}; the lines above say why it did not.")


def ask(url: str, token: str, path: str, method: str = "GET", value: Any = None) -> Any:
    """One call of the API with a token, and JSON if there is something to send -> the JSON that it answers."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    body = None if value is None else json.dumps(value).encode()
    with DIRECT.open(urllib.request.Request(url + path, body, headers, method=method), timeout=10) as answer:
        return json.load(answer)


def walk(tenant: Tenant, folder: pathlib.Path, stack: contextlib.ExitStack) -> str:
    """Every step of the main job -> the API's address."""
    say("The tenant is up.", f"It signs tokens as {tenant.url} and publishes its public keys there.")
    url = start_api(tenant, folder, stack)
    tenant.callbacks.append(url + "/app")
    # sync.py keeps its token cache in the state directory; the temporary folder spares the user's own.
    env = tenant.env | {"AUTH0_CLIENT_ID": CLIENT_ID, "AUTH0_CLIENT_SECRET": CLIENT_SECRET, "TIMESHEETS_URL": url}
    env |= {"PATH": os.environ.get("PATH", ""), "XDG_STATE_HOME": str(folder)}
    for title, work, expected in (  # 65: some rows were rejected
        ("1. The cron job gets a token and uploads a Toggl export. One of its rows cannot be right.", WORK, 65),
        ("2. The same export again. Nothing is doubled, and the job reuses its token.", WORK, 65),
        ("3. In Toggl one row was corrected, one moved to another day, one deleted, and the bad one mended.", LATER, 0),
    ):
        (folder / "toggl.csv").write_text(export(work), encoding="utf-8")
        say(title)
        sync(env, folder, expected, "-v", "toggl.csv")
    say("4. A manager approves Jane's week as the list shows it. That takes a person's token, with another scope.")
    manager = tenant.person("mira@exampleco.com", "approve:timesheets")
    done = ask(url, manager, "/approvals", "PUT", ask(url, manager, "/approvals?user_id=jane@contractor.example"))
    print(f"  {done['updated']} entries approved, {done['rejected']} rejected")
    say("5. Payroll asks for the month: what is approved, and nothing else.")
    month = "from=2026-11-01&to=2026-11-30&approved=1"
    for row in ask(url, tenant.machine("report:timesheets", "Payroll"), f"/reports/monthly?{month}"):
        line = f"  {row['month']}  {row['user_id']:25} {row['project']:10} {row['hours']:6.2f} h  "
        print(line + "\u2588" * round(row["hours"]))
    return url


def show_doors(tenant: Tenant, url: str) -> None:
    """What there is to try while all is served; each line can be copied as it stands."""
    say("Look at it in a browser:", f"{url}/app  sign in as Mira, who can approve Omar's week, or as Jane")
    print(f"  {url}/     what every route does")
    say("Or in another terminal; docs/api.md goes on from these lines:", f"url={url}")
    for name, (_, email, permitted) in zip(("JANE", "OMAR", "MANAGER", "CLERK"), PEOPLE.values(), strict=True):
        print(f"  {name}={tenant.person(email, permitted)}")
    print('  curl -H "Authorization: Bearer $JANE" $url/timesheets')
    settings = " ".join(f"{name}={value}" for name, value in {**tenant.env, "USER_CLAIM": EMAIL}.items())
    print(f'  {settings} {sys.executable} {HERE / "timesheets.py"} explain "$JANE"')
    print("\nServing until Ctrl-C.", flush=True)


def main() -> None:
    """Walk, then serve until Ctrl-C."""
    summary, example, *_ = __doc__.split("\n\n")
    options = argparse.ArgumentParser(usage=f"demo.py [--exit]\n\n{example}", description=summary)
    options.add_argument("--exit", action="store_true", help="stop after the steps")
    stay = not options.parse_args().exit
    # A terminal that cannot show the bars shows question marks. `kill`, and closing the terminal, end the walk as
    # Ctrl-C does, so that the API and the temporary folder go too.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    for number in ENDING[1:]:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with contextlib.ExitStack() as stack, contextlib.suppress(KeyboardInterrupt):
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="timesheets-demo-")))
        tenant = stack.enter_context(Tenant())
        url = walk(tenant, folder, stack)
        if stay:
            show_doors(tenant, url)
            threading.Event().wait()


if __name__ == "__main__":
    main()
