#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["bottle>=0.13.4", "pyjwt[crypto]>=2.15.1", "granian>=2.8", "msgspec>=0.20"]
# ///
"""The Timesheets API: One database of hours for programs and people, guarded by OAuth 2.0 access tokens.

External contractors track time in other tools; a cron job (sync.py) uploads their entries here, people add and
read their own, managers approve. Timesheets decide pay, so every route but the public ones stands behind
`@requires("scope")`, which enforces the issuer, the audience and the scope of an Auth0 access token (a JWT).

    AUTH0_DOMAIN=tenant.eu.auth0.com AUTH0_AUDIENCE=https://api.exampleco.com/timesheets python timesheets.py

Words used below, as the RFCs use them:

    issuer      who signs tokens: the Auth0 tenant, https://TENANT/ with the slash
    audience    for whom a token is meant: this API's identifier
    claims      what a token states: iss, aud, exp, iat, sub, scope ...
    scope       what a token permits, words with spaces between
    key set     the issuer's public keys (JWKS, RFC 7517), each with a key id (kid)
    client      the program that calls, `source` in an entry; the person it calls for is the token's subject

    batch:upload        /timesheets/upload                      the cron job
    create:timesheets   POST /timesheets                        people
    read:timesheets     GET /timesheets, /reports/weekly        people
    delete:timesheets   DELETE /timesheets/ID                   people
    approve:timesheets  /approvals, and others' entries         managers
"""

import argparse
import asyncio
import base64
import collections
import concurrent.futures
import contextlib
import csv
import dataclasses
import functools
import hashlib
import http.client
import inspect
import io
import json
import logging
import os
import pathlib
import random
import re
import signal
import socket
import sqlite3
import ssl
import sys
import threading
import time
import urllib.parse
import urllib.request
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Literal

import bottle
import jwt
import msgspec
from bottle import request, response
from cryptography.exceptions import UnsupportedAlgorithm

VERSION = "1.0.0"
THREADS = 16  # per worker, for what waits
RACE_BUDGET = 20  # seconds for which a request that keeps losing races runs again
log = logging.getLogger("timesheets")

# ---- Settings: read from the environment, all faults reported at once ----

LOOPBACK = re.compile(r"localhost|127(\.\d{1,3}){3}|\[::1\]", re.IGNORECASE)
ADDRESS = re.compile(  # no name and password, no query, no fragment, nothing that a header could not hold
    r"(?P<scheme>https?)://(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(:(?P<port>\d{1,5}))?(/[\w.~!$&'()*+,;=:@%/-]*)?",
    re.ASCII | re.IGNORECASE,
)


class Faults(ValueError):
    """Everything that is wrong with some input, as one list: sentences, or a Fault for each field of an entry."""


def url(text):
    """An absolute address, encrypted unless it stays on this machine."""
    match = ADDRESS.fullmatch(text)
    if match is None or int(match["port"] or 0) > 65_535:
        raise ValueError("must be a plain https:// address")
    if match["scheme"].lower() == "http" and not LOOPBACK.fullmatch(match["host"]):
        raise ValueError("must start with https://; what goes over http:// can be read and changed on its way")
    return text


def issuer_url(text):
    """The expected `iss`: https://DOMAIN/ for a bare domain, a full URL exactly as written."""
    if "://" in text:
        return url(text)
    if not re.fullmatch(r"[A-Za-z0-9.-]+\.[A-Za-z0-9-]+/?", text):
        raise ValueError("must be a domain such as tenant.eu.auth0.com, or a full https:// issuer URL")
    return f"https://{text.rstrip('/')}/"


def file_path(text):
    """The path of a file that is there."""
    if not os.path.isfile(text):
        raise ValueError(f"names no file: {text}")
    return text


def base_url(text):
    """An address to put paths after."""
    return url(text).rstrip("/")


def origin(text):
    """What a browser calls itself in the Origin header: scheme, host and port."""
    if not re.fullmatch(r"https?://(?!.*:(80|443)$)([a-z0-9.-]+|\[[0-9a-f:]+\])(:\d{1,5})?", url(text), re.ASCII):
        raise ValueError("must name origins as browsers do: https://app.exampleco.com, in small letters and no more")
    return text


def each(read):
    """A reader of values with commas between."""
    return lambda text: tuple(read(part.strip()) for part in text.split(",") if part.strip())


def reads(**schema):
    """Tag a reader with the JSON Schema of what it takes, for /openapi.json."""

    def tag(reader):
        reader.schema = schema
        return reader

    return tag


def number(low, high):
    """A reader of whole numbers from `low` to `high`."""

    @reads(type="integer", minimum=low, maximum=high)
    def read(text):
        if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or not low <= int(text) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(text)

    return read


def one_of(*choices):
    """A reader of one of a few words."""

    @reads(type="string", enum=list(choices))
    def read(text):
        if text not in choices:
            raise ValueError("must be " + " or ".join(choices))
        return text

    return read


def setting(variable, meaning, default=dataclasses.MISSING, read=str):
    """A field of Settings: the variable, what it is or where it is found, the default, how its text is read."""
    return dataclasses.field(default=default, metadata={"variable": variable, "meaning": meaning, "read": read})


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that the API is told from outside. Each variable is a command-line flag too."""

    issuer: str = setting(
        "AUTH0_DOMAIN", "the tenant's domain (Auth0 dashboard > Settings), or an issuer URL", read=issuer_url
    )
    audience: str = setting("AUTH0_AUDIENCE", "the API's identifier (Auth0 dashboard > Applications > APIs)")
    jwks_url: str = setting("JWKS_URL", "where the key set is, if not right below the issuer", "", url)
    extra_issuers: tuple = setting(
        "EXTRA_ISSUERS", "further accepted `iss` values that share the keys", (), each(issuer_url)
    )
    user_claim: str = setting("USER_CLAIM", "the claim that names a person", "sub")
    scope_claims: tuple = setting("SCOPE_CLAIMS", "claims that grant scopes too, with commas between", (), each(str))
    database_url: str = setting("DATABASE_URL", "the path of the SQLite file, or postgresql://...", "timesheets.db")
    host: str = setting("HOST", "the address to listen on", "127.0.0.1")
    port: int = setting("PORT", "the port to listen on; 0 takes a free one", 8080, number(0, 65535))
    workers: int = setting("WORKERS", "how many processes serve", 1, number(1, 64))
    tls_cert: str = setting("TLS_CERT", "the certificate chain's file (PEM), to serve HTTPS itself", "", file_path)
    tls_key: str = setting("TLS_KEY", "the file of that certificate's private key (PEM)", "", file_path)
    cors_origins: tuple = setting(
        "CORS_ORIGINS", "browser origins that may call, with commas between", (), each(origin)
    )
    public_url: str = setting("PUBLIC_URL", "this API's own URL as its callers see it", "", base_url)
    log_format: str = setting("LOG_FORMAT", "how a request is logged: plain or json", "plain", one_of("plain", "json"))

    def keys_url(self):
        """Where the issuer publishes its key set."""
        return self.jwks_url or self.issuer.rstrip("/") + "/.well-known/jwks.json"

    @classmethod
    def from_env(cls, env):
        """Build settings from a mapping such as `os.environ`. :raise Faults: a sentence for each fault."""
        values, faults = {}, []
        for field in dataclasses.fields(cls):
            variable, meaning, read = field.metadata.values()
            text = env.get(variable, "").strip()
            try:
                if text:
                    values[field.name] = read(text)
                elif field.default is dataclasses.MISSING:
                    raise ValueError("is not set")
            except ValueError as fault:
                faults.append(f"{variable} {fault}. It is {meaning}.")
        if bool(env.get("TLS_CERT", "").strip()) != bool(env.get("TLS_KEY", "").strip()):
            faults.append("TLS_CERT and TLS_KEY belong together. Only one of them is set.")
        if faults:
            raise Faults(faults)
        return cls(**values)


# ---- Problems: every error has one shape, RFC 9457 ----


class Fault(msgspec.Struct):
    """A field, or a parameter of the query, and what is wrong with it."""

    field: str
    detail: str


class ProblemDetails(msgspec.Struct, omit_defaults=True):
    """The body of every error (RFC 9457). `code` is for programs and never changes; `detail` is for people."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: list[Fault] = []


class Problem(bottle.HTTPError):
    """An error's status, a stable code for programs and a sentence for people; `errors` names the fields at fault.

    `challenge` completes WWW-Authenticate (RFC 6750 section 3). `reason` goes to the log and never to the caller.
    """

    def __init__(self, status, code, detail, errors=None, challenge=None, reason=None, retry_after=None):
        super().__init__(status, detail)
        self.code, self.detail, self.errors, self.reason = code, detail, errors, reason
        if challenge is not None:
            self.set_header("WWW-Authenticate", 'Bearer realm="timesheets"' + challenge)
        if retry_after is not None:
            self.set_header("Retry-After", retry_after)


BOTTLES_OWN = {  # errors that Bottle raises itself, in our words
    400: ("bad_request", "This is not a request as HTTP has it."),
    404: ("not_found", "There is nothing at this address."),
    405: ("method_not_allowed", "This address does not take that method; the Allow header names those it takes."),
    500: ("internal_error", "Something went wrong in the API; its log says more."),
}


def problem_json(error):
    """Bottle's error handler: every error, Bottle's own included, as application/problem+json."""
    if error.status_code == 405:
        methods = {"OPTIONS", *error.headers["Allow"].split(",")}
        response.set_header("Allow", ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods)))
        if request.method == "OPTIONS":
            response.status = 204
            return b""
    if not isinstance(error, Problem):
        error = Problem(error.status_code, *BOTTLES_OWN.get(error.status_code, BOTTLES_OWN[500]))
    request["reason"] = f"{error.code}: {error.reason or error.detail}"
    public_url, challenge = request.app.settings.public_url, response.get_header("WWW-Authenticate")
    if public_url and challenge:  # where a client that has only our address learns who signs (RFC 9728 section 5)
        metadata = f'resource_metadata="{public_url}/.well-known/oauth-protected-resource"'
        response.set_header("WWW-Authenticate", f"{challenge}, {metadata}")
    title = http.client.responses.get(error.status_code, "Error")
    facts = ("about:blank", title, error.status_code, error.detail, error.code, request["request_id"])
    response.content_type = "application/problem+json"
    return msgspec.json.encode(ProblemDetails(*facts, error.errors or []))


class MustWait(BaseException):
    """A request on the server's event loop would have to wait. It starts over in a thread; see `gateway`."""


class BodyWanted(MustWait):
    """A request that is let in needs its body, which has not been read yet."""


def may_wait():
    """Goes before all that waits, for a body, the disk or the issuer. :raise MustWait: this is an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise MustWait


BUSY = (503, "database_busy", "The database is busy; try again.")
AWAY = (503, "database_unavailable", "The database cannot be reached or written now; try again later.")
FULL = (507, "storage_full", "The database's disk is full, so nothing was stored; try again later.")


class RaceLost(Exception):
    """Two transactions met, and the database stopped this one. Nothing of it was stored; it may run again."""


def run_to_the_end(work):
    """Run `work` again while it loses races -> its result. :raise Problem: 503, it lost them all."""
    pause, give_up = 0.02, time.monotonic() + RACE_BUDGET
    while True:
        try:
            return work()
        except RaceLost as lost:
            if time.monotonic() > give_up:
                raise Problem(*BUSY, retry_after=5) from lost
            time.sleep(random.random() * pause)
            pause = min(2 * pause, 1)


def fence(handler):
    """Bottle plugin around every route: runs again what lost a race; logs, and does not tell, what nobody foresaw."""

    @functools.wraps(handler)
    def fenced(**arguments):
        try:
            return run_to_the_end(lambda: handler(**arguments))
        except bottle.HTTPResponse:
            raise
        except Exception as fault:  # the one place that catches everything
            log.exception("request %s failed", request["request_id"])
            raise Problem(500, *BOTTLES_OWN[500]) from fault

    return fenced


# ---- Storage: SQLite or PostgreSQL, where an answered upload survives a power cut ----

# Versions of the schema, oldest first. Rows are never deleted: an entry that goes away is voided.
SCHEMA = [
    """
    CREATE TABLE entry (
        id INTEGER PRIMARY KEY,           -- rows stay for ever, so no id is ever used twice
        source TEXT NOT NULL,             -- the client that wrote it; no client touches another's rows
        external_id TEXT,                 -- the tracker's key; NULL for what people typed themselves
        user_id TEXT NOT NULL CHECK (length(user_id) BETWEEN 1 AND 200),
        date TEXT NOT NULL CHECK (length(date) = 10),   -- the person's calendar day, as written
        project TEXT NOT NULL CHECK (length(project) BETWEEN 1 AND 200),
        seconds INTEGER NOT NULL CHECK (seconds BETWEEN 1 AND 86400),   -- whole seconds add up, hours do not
        description TEXT NOT NULL,
        approved INTEGER NOT NULL DEFAULT 0 CHECK (approved IN (0, 1)),
        voided INTEGER NOT NULL DEFAULT 0 CHECK (voided IN (0, 1) AND approved + voided < 2),
        changed_at TEXT NOT NULL,         -- when this version was written, UTC,
        changed_by TEXT NOT NULL,         -- and by which client or person
        UNIQUE (source, external_id)      -- the last line of defence against doubling
    ) STRICT;
    CREATE INDEX entry_by_user ON entry (user_id, date, id) WHERE voided = 0;
    CREATE INDEX entry_by_approval ON entry (approved, date, id) WHERE voided = 0;
    CREATE TABLE history (                -- each version that a change replaced, and who replaced it when
        entry_id INTEGER NOT NULL REFERENCES entry (id),
        user_id TEXT NOT NULL, date TEXT NOT NULL, project TEXT NOT NULL, seconds INTEGER NOT NULL,
        description TEXT NOT NULL, approved INTEGER NOT NULL, voided INTEGER NOT NULL,
        changed_at TEXT NOT NULL, changed_by TEXT NOT NULL, replaced_at TEXT NOT NULL, replaced_by TEXT NOT NULL
    ) STRICT;
    CREATE INDEX history_by_entry ON history (entry_id);
    CREATE TABLE replay (                 -- first answers under an Idempotency-Key, to be given again
        user_id TEXT NOT NULL, key TEXT NOT NULL, body_sha256 TEXT NOT NULL, answer TEXT NOT NULL,
        PRIMARY KEY (user_id, key)
    ) STRICT
    """,
]


def in_a_line(fault):
    """What a database says of a fault, in one line and without the statement that it happened in."""
    return " ".join(str(fault).partition("\nLINE ")[0].split())


class Database:
    """A SQLite file. Its connections are lent out, one to a thread at a time, and kept for the next."""

    errors = sqlite3
    begin = "BEGIN IMMEDIATE"
    schema_version = "PRAGMA user_version"
    set_version = "PRAGMA user_version = {}"
    passing = {  # result codes for trouble that is not the request's
        sqlite3.SQLITE_BUSY: BUSY,
        sqlite3.SQLITE_READONLY: AWAY,
        sqlite3.SQLITE_IOERR: AWAY,
        sqlite3.SQLITE_CANTOPEN: AWAY,
        sqlite3.SQLITE_FULL: FULL,
    }

    def __init__(self, url):
        self.url, self.idle = url, collections.deque()

    def open(self):
        """A new connection: another writer is waited for 5 s, every commit is on the disk before it is answered."""
        connection = sqlite3.connect(self.url, timeout=5, isolation_level=None, check_same_thread=False)
        # In a large table the rows of one upload lie in hundreds of pages: read them once, copy them back seldom.
        connection.executescript(
            "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA cache_size = -8000;"
            " PRAGMA wal_autocheckpoint = 10000"
        )
        return connection

    @contextlib.contextmanager
    def connection(self):
        """Lend a connection. :raise Problem: 503 or 507 for trouble that passes."""
        try:
            try:
                connection = self.idle.pop()
            except IndexError:  # asking for its length first would race with other threads
                connection = self.open()
            try:
                with connection:  # rolls back when something is raised; psycopg's pool does so too
                    yield connection
            finally:
                self.idle.append(connection)
        except sqlite3.OperationalError as fault:
            if (fault.sqlite_errorcode & 0xFF) not in self.passing:
                raise
            raise Problem(*self.passing[fault.sqlite_errorcode & 0xFF], reason=fault, retry_after=5) from fault

    @contextlib.contextmanager
    def transaction(self, keep=True):
        """Lend a connection in a write transaction: all of it is stored or nothing; nothing when `keep` is false."""
        may_wait()
        with self.connection() as connection:
            connection.execute(self.begin)
            yield connection
            connection.execute("COMMIT" if keep else "ROLLBACK")

    def read(self, sql, values=()):
        """All rows of a query, as tuples."""
        with self.connection() as connection:
            return connection.execute(sql, values).fetchall()

    def new_ids(self, db, count):
        """Ids for so many new entries. Nobody else can take the next ones while the write transaction is ours."""
        ((last,),) = db.execute("SELECT coalesce(max(id), 0) FROM entry")
        return range(last + 1, last + 1 + count)

    def prepare(self):
        """Let readers and a writer work side by side (WAL). :raise RaceLost: SQLite does not queue for this switch."""
        try:
            with self.connection() as db:
                db.execute("PRAGMA journal_mode = WAL")
        except Problem as problem:
            if problem.code == BUSY[1]:
                raise RaceLost(problem.reason) from problem
            raise

    def upgrade(self):
        """Run the statements of each version of the schema that the database does not have yet; -> what it had."""
        self.prepare()
        with self.transaction() as db:
            ((found,),) = db.execute(self.schema_version).fetchall()
            for version, statements in list(enumerate(SCHEMA, start=1))[found:]:
                for statement in re.sub(r"--.*", "", statements).split(";"):
                    db.execute(statement)
                db.execute(self.set_version.format(version))
        return found

    def migrate(self):
        """Bring the schema to this version.

        :raise Faults: it is no database of ours, or a newer program's
        :raise OSError: PostgreSQL cannot be reached, which may pass
        """
        try:
            found = run_to_the_end(self.upgrade)  # other processes start as well
        except (self.errors.Error, Problem) as fault:
            raise Faults(
                [f"DATABASE_URL is no database that can be used: {in_a_line(fault.__cause__ or fault)}."]
            ) from fault
        if found > len(SCHEMA):
            raise Faults([f"DATABASE_URL has schema {found}, from a newer program. This one knows {len(SCHEMA)}."])

    def close(self):
        """Close the connections that nobody has borrowed."""
        while self.idle:
            self.idle.pop().close()


class Postgres(Database):
    """A PostgreSQL database, shared by any number of API processes: the same SQL, serializable transactions, a pool.

    Only what every engine that speaks its protocol has is used: no advisory locks, no LISTEN, no extensions.
    """

    begin = "BEGIN ISOLATION LEVEL SERIALIZABLE"
    # To write the row while reading it makes hosts that start at once queue: all but the first then lose the race.
    schema_version = (
        "UPDATE schema_version SET version = 0 WHERE version = 0 RETURNING (SELECT max(version) FROM schema_version)"
    )
    set_version = "INSERT INTO schema_version VALUES ({})"

    def __init__(self, url):
        try:
            import psycopg
            import psycopg_pool
        except ImportError:
            raise Faults(["DATABASE_URL is PostgreSQL's, which needs a package more: psycopg[binary,pool]."]) from None
        try:
            parts = psycopg.conninfo.conninfo_to_dict(url)
            if "@" in f"{parts.get('host')} {parts.get('dbname')}" or re.search("[^0-9,]", str(parts.get("port", ""))):
                raise psycopg.ProgrammingError  # a password that is not percent-encoded reaches into the host or port
        except psycopg.Error:  # whose text would show the password
            raise Faults(["DATABASE_URL is malformed; it must be postgresql://USER:PASSWORD@HOST/NAME."]) from None
        self.errors = errors = psycopg.errors
        self.connect = functools.partial(psycopg.connect, url, connect_timeout=5)
        start = (errors.DuplicateTable, errors.DuplicateObject)  # hosts that start at once make the same tables
        self.races = (errors.SerializationFailure, errors.DeadlockDetected, errors.UniqueViolation, *start)
        logging.getLogger("psycopg").setLevel(logging.ERROR)  # what it warns of stands in our own line of the request
        self.pool = psycopg_pool.ConnectionPool(
            url, min_size=1, max_size=THREADS, timeout=5, open=False, kwargs={"autocommit": True}
        )

    @contextlib.contextmanager
    def connection(self):
        """Lend a connection. :raise Problem: 503 or 507 for trouble that passes. :raise RaceLost: run again."""
        may_wait()
        self.pool.open()
        try:
            with self.pool.connection() as connection:
                yield PostgresConnection(connection)
        except self.races as fault:
            raise RaceLost(fault) from fault
        except self.errors.DiskFull as fault:
            raise Problem(*FULL, reason=fault, retry_after=5) from fault
        except (self.errors.OperationalError, self.errors.ReadOnlySqlTransaction) as fault:
            raise Problem(*AWAY, reason=fault, retry_after=5) from fault

    def new_ids(self, db, count):
        """Ids for so many new entries."""
        rows = db.execute("SELECT nextval('entry_id') FROM generate_series(1, ?)", [count])
        return [entry_id for (entry_id,) in rows]

    def prepare(self):
        """Make the table that knows the schema's version, and the source of ids. :raise OSError: no server."""
        try:
            self.connect().close()  # unlike the pool, it says why it cannot
        except self.errors.OperationalError as fault:
            raise ConnectionError(f"DATABASE_URL cannot be connected to: {in_a_line(fault)}") from fault
        with self.connection() as db:
            db.execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER PRIMARY KEY)")
            db.execute("INSERT INTO schema_version VALUES (0) ON CONFLICT DO NOTHING")
            db.execute("CREATE SEQUENCE IF NOT EXISTS entry_id")

    def close(self):
        """Close the pool."""
        self.pool.close()


class PostgresConnection:
    """A psycopg connection that takes SQLite's way of writing parameters and tables."""

    def __init__(self, connection):
        self.connection = connection

    def execute(self, sql, values=()):
        """Run a statement -> its cursor."""
        sql = sql.replace("?", "%s").replace(") STRICT", ")").replace("id INTEGER PRIMARY KEY", "id BIGINT PRIMARY KEY")
        return self.connection.execute(sql, values or None)

    def executemany(self, sql, rows):
        """Run a statement for each row, in one go; new rows go by COPY, which takes a third of the time."""
        cursor = self.connection.cursor()
        if insert := re.fullmatch(r"INSERT INTO (\w+ \([^)]*\)) VALUES \((\?, )*\?\)", sql):
            with cursor.copy(f"COPY {insert[1]} FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
        else:
            cursor.executemany(sql.replace("?", "%s"), rows)


def open_database(url):
    """The database at a path or a postgresql:// address. :raise Faults: it cannot be one."""
    if url == ":memory:":
        raise Faults(["DATABASE_URL is :memory:, of which each connection would have its own. It must be a file."])
    if url.startswith(("postgresql://", "postgres://")):
        return Postgres(url)
    if "://" in url:
        raise Faults(["DATABASE_URL must be the path of the SQLite file, or postgresql://USER:PASSWORD@HOST/NAME."])
    return Database(url)


def utc_now():
    """The time of a change, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def keep_history(db, who, ids):
    """Copy entries into the history. Whatever changes an entry calls this first."""
    db.executemany(
        "INSERT INTO history SELECT id, user_id, date, project, seconds, description, approved, voided, changed_at,"
        " changed_by, ?, ? FROM entry WHERE id = ?",
        [(utc_now(), who, entry_id) for entry_id in ids],
    )


# ---- Input: what an entry, a body and a query must be ----

MAX_BODY, MAX_ROWS = 8 * 1024 * 1024, 10_000
BODY_DEADLINE = 30  # seconds for a whole body
BAD_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # controls, and halves of a character
DECIMAL = re.compile(r"\s*\d+(\.\d*)?(e[+-]?\d{1,3})?\s*", re.ASCII | re.IGNORECASE)
TIME = r"([01]\d|2[0-3]):[0-5]\d(:[0-5]\d([.,]\d{1,30})?)?"
ISO_DATE = re.compile(rf"(\d{{4}}-\d\d-\d\d)([T ]{TIME}( ?(Z|[+-]\d\d:?\d\d))?)?", re.ASCII)
JAVA_DATE = re.compile(rf"[A-Z][a-z]{{2}} ([A-Z][a-z]{{2}} \d\d) {TIME} [\w:+-]{{1,20}} (?P<year>\d{{4}})", re.ASCII)


def text(low, high):
    """A reader of text of `low` to `high` characters, which it trims."""

    @reads(type="string", minLength=low, maxLength=high, pattern="^[^\\x00-\\x1f\\x7f-\\x9f]*$")
    def read(value):
        if type(value) is not str:
            raise ValueError("must be text")
        if len(value) <= 2 * high:  # a longer one stays too long, because what `remember` keeps must be small
            value = value.strip()
        if not low <= len(value) <= high:
            raise ValueError(f"must have {low} to {high} characters")
        if not value.isprintable() and BAD_CHARACTER.search(value):
            raise ValueError("must not hold control characters or broken Unicode")
        return value

    return read


@reads(type="string", format="date", examples=["2026-11-20"])
def day(value):
    """A reader of YYYY-MM-DD, ISO date-times and Java's Date.toString(), as YYYY-MM-DD: as written, in any zone."""
    with contextlib.suppress(ValueError, TypeError):  # there is no such day; it is no text
        if match := ISO_DATE.fullmatch(value):
            return date.fromisoformat(match[1]).isoformat()
        if match := JAVA_DATE.fullmatch(value):
            return datetime.strptime(f"{match[1]} {match['year']}", "%b %d %Y").date().isoformat()
    raise ValueError("must be a date such as 2026-11-20")


@reads(type="string", examples=["2026-11-20", "2026-11-20T17:40:20.095Z"])
def worked_day(value):
    """A reader of days on which somebody can have worked: from 2000 to tomorrow, wherever they are."""
    worked = day(value)
    if not "2000-01-01" <= worked <= (datetime.now(UTC) + timedelta(days=1)).strftime("%Y-%m-%d"):
        raise ValueError("must be from 2000-01-01 to tomorrow")
    return worked


@reads(type=["number", "string"], exclusiveMinimum=0, maximum=24, examples=[7.5])
def hours(value):
    """A reader of hours, as whole seconds. The form `not 0 < x <= 24` refuses NaN too."""
    if type(value) is str and len(value) <= 64 and DECIMAL.fullmatch(value):
        value = float(value)
    if type(value) not in (int, float):
        raise ValueError("must be a number of hours such as 7.5")
    if not 0 < value <= 24 or round(value * 3600) == 0:
        raise ValueError("must be more than 0 and at most 24")
    return round(value * 3600)


@reads(type="string", enum=["1", "0", "true", "false"])
def flag(text):
    """A reader of yes and no, as 1 and 0."""
    if text not in flag.schema["enum"]:
        raise ValueError("must be 1, 0, true or false")
    return int(text in ("1", "true"))


@reads(const=True)
def tombstone(value):
    """A reader of the mark that an entry is gone upstream."""
    if value is not True:
        raise ValueError("must be true, or left out")


remember = functools.lru_cache(maxsize=4096, typed=True)  # a batch says most things many times; True is not 1
OWN_ENTRY = {
    "date": remember(worked_day),
    "project": remember(text(1, 200)),
    "hours": remember(hours),
    "description": text(0, 5000),
}
UPLOADED_ENTRY = {"user_id": remember(text(1, 200)), **OWN_ENTRY, "external_id": text(1, 200)}
VOIDED_ENTRY = {"external_id": text(1, 200), "deleted": tombstone}
OPTIONAL = {"description": "", "external_id": None}
SERVER_SETS = {"id", "user_id", "approved", "source"}


def read_entry(row, readers):
    """The fields of a JSON object, each read by its reader. :raise Faults: all of its Faults."""
    if type(row) is not dict:
        raise Faults([Fault("", "must be a JSON object")])
    entry, faults = {}, []
    for field, read in readers.items():
        try:
            if field in row:
                entry[field] = read(row[field])
            elif field in OPTIONAL and "deleted" not in readers:
                entry[field] = OPTIONAL[field]
            else:
                raise ValueError("is missing")
        except ValueError as fault:
            faults.append(Fault(field, str(fault)))
        except TypeError:  # nothing to remember it by
            faults.append(Fault(field, "must be a single value, not a list or an object"))
    for field in row:
        if field not in readers:
            detail = "is set by the server" if field in SERVER_SETS else "unknown field"
            faults.append(Fault(sayable(field), detail))
    if faults:
        raise Faults(faults)
    return entry


def sayable(text):
    """What somebody sent, short enough and whole enough to be sent back."""
    return text[:200].encode(errors="replace").decode()


def object_of(pairs):
    """A JSON object. A name that stands twice is an error: readers disagree on which of the two counts."""
    members = dict(pairs)
    if len(members) < len(pairs):
        raise Problem(400, "duplicate_key", "An object in the JSON body has one name twice.")
    return members


def no_number(name):
    """Python's reader would take NaN and Infinity, which JSON does not have."""
    raise Problem(400, "malformed_json", f"The body is not JSON: {name} is no JSON number.")


def read_body():
    """The request's body. :raise Problem: 415 no JSON, 413 over the limit, which its length may tell, 400 cut short."""
    media, _, parameters = request.environ.get("CONTENT_TYPE", "").lower().partition(";")
    if media.strip() != "application/json" or ("charset" in parameters and "utf-8" not in parameters):
        raise Problem(415, "unsupported_media_type", "The body must be JSON in UTF-8: Content-Type: application/json")
    length = request.content_length
    if length < 0:  # chunked: no length is stated, and one byte more than the limit tells enough
        length = MAX_BODY + 1 if request.environ.get("wsgi.input_terminated") else 0
    if length <= MAX_BODY + 1 and "body" not in request.environ:
        request["body"] = request["wsgi.input"].read(length)
    body = request.environ.get("body")
    if body is None or len(body) > MAX_BODY:
        limit = f"{MAX_BODY // 1024**2} MiB"
        raise Problem(413, "too_large", f"The body is over the limit of {limit}; send fewer rows at once.")
    if len(body) < request.content_length:
        raise Problem(400, "malformed_json", "The body ended before the length that Content-Length states.")
    return body


def read_json(body):
    """The body's JSON value. :raise Problem: 400, with line and column where there is one."""
    try:
        return json.loads(body.decode(), object_pairs_hook=object_of, parse_constant=no_number)
    except json.JSONDecodeError as fault:
        where = f"{fault.msg} at line {fault.lineno}, column {fault.colno}"
        raise Problem(400, "malformed_json", f"The body is not JSON: {where}.") from fault
    except (ValueError, RecursionError) as fault:
        raise Problem(400, "malformed_json", "The body is not UTF-8, or no JSON that an entry could be.") from fault


def read_query(readers):
    """The query's parameters, each read by its reader. :raise Problem: 400, naming every parameter at fault."""
    values, faults = {}, []
    try:
        pairs = urllib.parse.parse_qsl(request.query_string, keep_blank_values=True, errors="strict", max_num_fields=50)
    except ValueError as fault:
        raise Problem(400, "invalid_query", "The query is not UTF-8, or has too many parameters.") from fault
    for name, value in pairs:
        try:
            if name not in readers:
                raise ValueError("unknown parameter; known here: " + (", ".join(readers) or "none"))
            if name in values:
                raise ValueError("stands twice")
            values[name] = readers[name](value)
        except ValueError as fault:
            faults.append(Fault(name[:200], str(fault)))
    if faults:
        raise Problem(400, "invalid_query", "The query has faults; errors names them.", faults)
    return values


@reads(type="string", pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}\.[0-9]{1,18}$")
def page_mark(value):
    """A reader of a page's start: the date and id after which it begins."""
    if not re.fullmatch(page_mark.schema["pattern"], value):
        raise ValueError("must be as in the Link header of the page before")
    return [value[:10], int(value[11:])]


# ---- Tokens: the key set, verify, requires ----

LEEWAY = 5  # seconds by which the issuer's clock and ours may differ
FRESH, USABLE = 600, 86_400  # seconds until a key set is fetched anew, and for how long it serves if that fails
PAUSE, DEADLINE = 30, 5  # seconds between two fetches, so that made-up key ids cannot cause a flood; and for one
HASTE = 0.25  # seconds that a request waits for a fetch when half the threads wait for it already
ALGORITHMS = {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
TOKEN_TYPES = {"jwt", "at+jwt", "application/at+jwt"}  # DPoP proofs and logout tokens are none of these
BROKEN_KEY = (jwt.PyJWTError, UnsupportedAlgorithm, ValueError, TypeError, LookupError, AttributeError)
BEARER = re.compile(r"bearer +([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE)  # RFC 6750 section 2.1


class InvalidToken(Problem):
    """A token that is refused: 401. The reason goes to the log; the caller learns less."""

    def __init__(self, reason):
        detail = "The access token is malformed, expired or not meant for this API; get a new one."
        super().__init__(401, "invalid_token", detail, challenge=', error="invalid_token"', reason=reason)


def fetch_keys(address):
    """The issuer's key set as {kid: PyJWK}. :raise OSError, ValueError, HTTPException: it cannot be had."""
    opener, body, end = urllib.request.OpenerDirector(), b"", time.monotonic() + DEADLINE
    for handler in (urllib.request.ProxyHandler, HeadInTime):
        opener.add_handler(handler())  # none for redirects: the keys come from the issuer and nobody else
    with opener.open(address, timeout=DEADLINE) as answer:
        while chunk := answer.read1(65_536):
            body += chunk
            if len(body) > 256 * 1024 or time.monotonic() > end:
                raise ValueError("the answer is longer or slower than a key set's")
        if answer.status != 200:
            raise ValueError(f"the issuer answered {answer.status}")
    return usable_keys(json.loads(body))


class HeadInTime(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
    """Opens http and https, and hangs up when the head of the answer is not here in time, however it drips."""

    def do_open(self, http_class, req, **http_conn_args):
        """What both handlers call with their kind of connection, which here has DEADLINE seconds from its making."""

        def connect(host, **options):
            connection = http_class(host, **options)

            def hang_up():
                with contextlib.suppress(OSError, AttributeError):  # it is closed, or handed on to who reads the body
                    connection.sock.shutdown(socket.SHUT_RDWR)

            timer = threading.Timer(DEADLINE, hang_up)
            timer.daemon = True
            timer.start()
            return connection

        return super().do_open(connect, req, **http_conn_args)


def usable_keys(document):
    """The keys of a JWKS that may verify tokens (RFC 7517 section 4), by key id. :raise ValueError: there are none.

    Left out: symmetric, encryption and malformed keys, keys without an id, RSA below 2048 bits. A key that names no
    algorithm gets the first of its type (RS256 for RSA); a token's header never chooses.
    """
    keys = {}
    members = document.get("keys") if isinstance(document, dict) else None
    for jwk in members if isinstance(members, list) else []:
        try:
            key = jwt.PyJWK(jwk)
            strong = key.algorithm_name in ALGORITHMS and (jwk["kty"] != "RSA" or key.key.key_size >= 2048)
            meant = jwk.get("use", "sig") == "sig" and "verify" in jwk.get("key_ops", ["verify"])
            if strong and meant and type(jwk["kid"]) is str:
                keys.setdefault(jwk["kid"], key)
        except BROKEN_KEY:
            continue  # one bad member must not take the good ones away
    if not keys:
        raise ValueError("the answer holds no key that may verify a token")
    return keys


class KeySet:
    """The issuer's key set: kept, refreshed, and in an outage kept on with.

    One thread at a time fetches. A request waits for it only when it cannot be judged otherwise.
    """

    def __init__(self, address, clock=time.monotonic):
        self.address, self.clock = address, clock
        self.keys, self.fetched, self.tried = {}, float("-inf"), float("-inf")
        self.lock, self.thread = threading.Lock(), threading.Thread()
        self.patient = threading.BoundedSemaphore(THREADS // 2)  # made-up key ids must not hold every thread

    def state(self):
        """`fresh`; `stale` when the issuer has not answered for a while and the last set serves on; else `none`."""
        age = self.clock() - self.fetched
        return "fresh" if age <= FRESH else "stale" if age <= USABLE else "none"

    def find(self, kid):
        """The key with this id. :raise InvalidToken: the issuer has none. :raise Problem: 503, it cannot be asked."""
        asked = False
        if kid not in self.keys or self.state() == "none":
            asked = self.refresh(wait=True)
        elif self.state() == "stale":
            self.refresh(wait=False)
        key, state = self.keys.get(kid), self.state()  # one look, because a fetch may end in between two
        if key and state != "none":
            return key
        if state == "fresh" and not (asked and self.fetched < self.tried):
            raise InvalidToken(f"the issuer has no key {kid!r}")
        detail = "The issuer's signing keys cannot be fetched, so this token cannot be judged now; try again later."
        raise Problem(503, "keys_unavailable", detail, reason=f"key {kid!r}, key set {state}", retry_after=PAUSE)

    def refresh(self, wait):
        """Fetch in a thread, unless that was tried a moment ago; -> whether an attempt was waited for."""
        if wait:
            may_wait()
        with self.lock:
            if not self.thread.is_alive():
                if self.clock() - self.tried < (PAUSE if self.keys else DEADLINE):  # without keys, sooner
                    return False
                self.tried = self.clock()
                self.thread = threading.Thread(target=self.fetch, daemon=True)
                self.thread.start()
            thread, left = self.thread, DEADLINE - (self.clock() - self.tried)
        if wait:
            patient = self.patient.acquire(blocking=False)
            thread.join(max(left if patient else min(left, HASTE), 0))
            if patient:
                self.patient.release()
        return wait

    def fetch(self):
        """One attempt; a failure leaves the old set in place."""
        try:
            keys = fetch_keys(self.address)
        except (OSError, ValueError, RecursionError, http.client.HTTPException) as fault:
            log.warning("the key set at %s cannot be fetched: %s", self.address, fault)
        else:
            self.keys, self.fetched = keys, self.tried


Caller = collections.namedtuple("Caller", "client person scopes starts expires")  # person is None for a machine
# Who calls, as Auth0 (azp, gty), RFC 9068 (client_id), Okta (cid), Entra ID (oid, idtyp) and Keycloak say it.
CALLER_CLAIMS = ("sub", "azp", "client_id", "cid", "oid", "gty", "idtyp", "preferred_username")


def signed_claims(settings, token, key):
    """The claims of a token that `key` signed for this API (RFC 7519, 8725, 9068). :raise InvalidToken: in doubt."""
    options: jwt.types.Options = {"require": ["exp", "iat", "sub"]}
    options |= {"verify_exp": False, "verify_iat": False, "verify_nbf": False}  # the clock's part is in `verify`
    algorithms, issuers = [key.algorithm_name], [settings.issuer, *settings.extra_issuers]
    try:
        decoded = jwt.decode_complete(token, key, algorithms, options, audience=settings.audience, issuer=issuers)
    except (jwt.PyJWTError, ValueError) as fault:
        raise InvalidToken(str(fault)) from fault
    if str(decoded["header"].get("typ", "JWT")).lower() not in TOKEN_TYPES:
        raise InvalidToken("its type is not an access token's")
    if "cnf" in decoded["payload"]:
        raise InvalidToken("it is bound to a key (cnf), and this API cannot check the proof")
    return decoded["payload"]


def is_time(claim):
    """Whether a claim is a NumericDate (RFC 7519 section 2) that a clock can be set beside."""
    return type(claim) in (int, float) and 0 <= claim < 2**53


def judge(settings, token, key):
    """What a token signed by `key` permits, as a Caller: a pure function, which never looks at the clock.

    :raise InvalidToken: the token is not for this API, or a claim has the wrong type.
    """
    claims = signed_claims(settings, token, key)
    texts = {name: claims.get(name, "") for name in (*CALLER_CLAIMS, "scope", settings.user_claim)}
    times = {name: claims.get(name, 0) for name in ("exp", "iat", "nbf")}
    grants = {name: claims.get(name, []) for name in settings.scope_claims}  # a list, or a text like `scope`
    grants = {name: value.split(" ") if type(value) is str else value for name, value in grants.items()}
    grants["permissions"] = claims.get("permissions", [])
    if not all(type(value) is str and not BAD_CHARACTER.search(value) for value in texts.values()) or not texts["sub"]:
        raise InvalidToken(f"one of {', '.join(texts)} is not plain text")
    if not all(map(is_time, times.values())):
        raise InvalidToken("one of exp, iat, nbf is not a time")
    if not all(type(grant) is list and all(type(scope) is str for scope in grant) for grant in grants.values()):
        raise InvalidToken(f"one of {', '.join(grants)} is not a list of texts")
    subject, client = texts["sub"], texts["azp"] or texts["client_id"] or texts["cid"] or texts["sub"]
    machine = (
        texts["gty"] == "client-credentials"
        or subject.endswith("@clients")
        or subject in (texts["azp"], texts["client_id"], texts["cid"], texts["oid"])
        or texts["idtyp"] not in ("", "user")
        or texts["preferred_username"].startswith("service-account-")
    )
    person = None if machine else texts[settings.user_claim].strip()
    if person and (person == "*" or len(person) > 200):
        raise InvalidToken(f"{settings.user_claim} is no name of a person")
    scopes = frozenset(texts["scope"].split(" ")).union(*grants.values())
    return Caller(client, person, scopes, max(times["iat"], times["nbf"]), times["exp"])


@functools.lru_cache(maxsize=64)  # an issuer's tokens all begin with the same header
def key_id(header):
    """Which key a token's header names, to be looked up and not yet to be believed. :raise InvalidToken: none."""
    try:
        kid = json.loads(base64.urlsafe_b64decode(header + "=="))["kid"]
    except (ValueError, LookupError, TypeError, RecursionError) as fault:
        raise InvalidToken("its header cannot be read, or names no key") from fault
    if type(kid) is not str:
        raise InvalidToken("its key id is not text")
    return kid


def verify(token, app):
    """The Caller that a token speaks for. :raise InvalidToken: it does not convince. :raise Problem: 503, no keys.

    Checks signature, algorithm, type, issuer, audience and times. Does not check scopes (`requires` does) nor whether
    the token was revoked before its time: a self-contained token cannot tell.
    """
    if len(token) > 16_384:
        raise InvalidToken("it is longer than any real token")
    caller, now = app.judge(token, app.keys.find(key_id(token.partition(".")[0]))), app.clock()
    if caller.expires + LEEWAY <= now:
        raise InvalidToken("it has expired")
    if caller.starts - LEEWAY > now:
        raise InvalidToken("it is not valid yet")
    return caller


def bearer_token(header):
    """The token in an Authorization header. :raise Problem: 401 without one, 400 for a malformed one (RFC 6750 3.1)."""
    if match := BEARER.fullmatch(header or ""):
        return match[1]
    # Two headers arrive as one with a comma, characters outside ASCII as an empty one; both are malformed.
    if header is None or ("," not in header and header.lower().split()[:1] not in ([], ["bearer"])):
        raise Problem(401, "token_required", "This needs an access token: Authorization: Bearer TOKEN", challenge="")
    detail = "The Authorization header must stand once and hold the word Bearer, a space and the token."
    raise Problem(400, "invalid_request", detail, challenge=', error="invalid_request"')


def requires(scope, machines=False, query=None):
    """Let a request pass only with an access token of our issuer, for our audience, that grants `scope`.

    Stands *below* the route's decorator. The handler finds the Caller in `request["caller"]`, and the query's
    parameters, as the readers in `query` read them, in `request["asked"]`.
    """

    def guard(handler):
        handler.scope, handler.machines, handler.query = scope, machines, query or {}  # for /openapi.json and `explain`

        @functools.wraps(handler)
        def guarded(**arguments):
            caller = verify(bearer_token(request.environ.get("HTTP_AUTHORIZATION")), request.app)
            request["caller"] = caller
            if scope not in caller.scopes:
                raise insufficient_scope(scope)
            if not machines and not caller.person:
                raise Problem(403, "person_required", NO_PERSON)
            request["asked"] = read_query(handler.query)
            return handler(**arguments)

        return guarded

    return guard


NO_PERSON = "This is a person's business, and the token speaks for a program or names no person; sign in as a person."


def insufficient_scope(scope):
    """The Problem of a token that permits too little."""
    challenge = f', error="insufficient_scope", scope="{scope}"'
    return Problem(403, "insufficient_scope", f"This needs a token with the scope {scope}.", challenge=challenge)


# ---- Answers: JSON, or CSV for spreadsheets ----


class Entry(msgspec.Struct, gc=False):
    """Hours of one person on one day for one project. All keys are always there."""

    id: int
    user_id: str
    date: Annotated[str, msgspec.Meta(extra_json_schema={"format": "date"})]
    project: str
    hours: Annotated[float, msgspec.Meta(gt=0, le=24)]
    description: str
    approved: bool
    source: str  # the client that wrote it
    external_id: str | None  # the tracker's key, within the source


class Result(msgspec.Struct, omit_defaults=True, gc=False):
    """What became of one row of an upload; `id` when there is an entry, `code` and `errors` when it is rejected."""

    index: int
    external_id: str | None
    status: Literal["created", "updated", "unchanged", "deleted", "rejected"]
    id: int | None | msgspec.UnsetType = msgspec.UNSET
    code: str | msgspec.UnsetType = msgspec.UNSET
    errors: list[Fault] = []


class Results(msgspec.Struct):
    """What became of an upload. The five counts add up to the rows sent."""

    created: int
    updated: int
    unchanged: int
    deleted: int
    rejected: int
    results: list[Result]


class Week(msgspec.Struct, kw_only=True):
    """Hours of an ISO week, by person, by project or by both."""

    week: str
    user_id: str | msgspec.UnsetType = msgspec.UNSET
    project: str | msgspec.UnsetType = msgspec.UNSET
    hours: float


class KeySetHealth(msgspec.Struct):
    """Whether the issuer's keys are `fresh`, `stale` or `none`, and the seconds since they were fetched."""

    state: Literal["fresh", "stale", "none"]
    age_seconds: int | None


class Health(msgspec.Struct):
    """The state of the service, for load balancers."""

    status: Literal["ok"]
    keys: KeySetHealth


STATUSES = Results.__struct_fields__[:-1]
KEYS = Entry.__struct_fields__
COLUMNS = ", ".join(KEYS).replace("hours", "seconds")


@functools.lru_cache(maxsize=4096)
def in_hours(seconds):
    """Seconds as the hours that are shown: rounded here, once, and never stored."""
    return round(seconds / 3600, 4)


def entry_of(row):
    """A row of COLUMNS as an Entry."""
    entry_id, user_id, day, project, seconds, description, approved, source, key = row
    return Entry(entry_id, user_id, day, project, in_hours(seconds), description, approved == 1, source, key)


def answer(value, status=200):
    """Send JSON; with an entry that was created, where it is."""
    response.status, response.content_type = status, "application/json"
    if status == 201 and value.id is not None:
        response.set_header("Location", f"{request.app.settings.public_url}/timesheets/{value.id}")
    return msgspec.json.encode(value)


def answer_list(items, columns):
    """Send a bare JSON array, or CSV (RFC 4180) to a caller who accepts text/csv."""
    response.add_header("Vary", "Accept")
    if "text/csv" not in request.environ.get("HTTP_ACCEPT", "").lower():
        return answer(items)
    sheet = io.StringIO()
    csv.writer(sheet).writerows([columns, *([cell(getattr(item, column)) for column in columns] for item in items)])
    response.content_type = "text/csv; charset=utf-8"
    return sheet.getvalue().encode()


def cell(value):
    """A CSV cell that no spreadsheet takes for a formula."""
    if type(value) is bool:
        return str(value).lower()
    return "'" + value if type(value) is str and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


FILTERS = {"from": "date >= ?", "to": "date <= ?", "project": "project = ?"}
PERIOD = {"from": day, "to": day}
PAGE = {"limit": number(1, 1000), "after": page_mark}


def answer_entries(condition, values=(), approved=(0, 1), of_one=False):
    """Send one page of the live entries that meet `condition`, by date and id; a Link leads to the next (RFC 8288).

    `of_one` says that they are one person's, in whose own index they are few.
    """
    query, conditions, values = request["asked"], [condition, "voided = 0"], list(values)
    if "project" in query or "approved" in query:  # what is rare may be far between
        may_wait()
    for name, filtered in FILTERS.items():
        if name in query:
            conditions.append(filtered)
            values.append(query[name])
    if "after" in query:
        conditions.append("(date, id) > (?, ?)")
        values += query["after"]
    kinds = [query["approved"]] if "approved" in query else approved
    if of_one:  # the sign keeps the planner to the index by user
        halves = [[*conditions, f"+approved BETWEEN {kinds[0]} AND {kinds[-1]}"]]
    else:  # the index by approval has a list of both kinds as two ordered halves, which the database merges
        halves = [[*conditions, f"approved = {kind}"] for kind in kinds]
    select = " UNION ALL ".join(f"SELECT {COLUMNS} FROM entry WHERE {' AND '.join(half)}" for half in halves)
    limit = query.get("limit", 100)
    rows = request.app.db.read(f"{select} ORDER BY date, id LIMIT ?", [*values * len(halves), limit + 1])
    if len(rows) > limit:  # an absolute link only where PUBLIC_URL says how callers see us: the Host header may lie
        address = request.app.settings.public_url + request.path
        following = query | {"after": f"{rows[limit - 1][2]}.{rows[limit - 1][0]}"}
        following = "&".join(f"{name}={urllib.parse.quote(str(value), '')}" for name, value in following.items())
        response.set_header("Link", f'<{address}?{following}>; rel="next"')
    return answer_list([entry_of(row) for row in rows[:limit]], KEYS)


# ---- Routes: uploads, for programs ----

api = bottle.Bottle()  # collects the routes; create_app() makes the application
api.uninstall(True)  # Bottle's own plugins: the handlers answer with bytes
api.install(fence)
ENTRY_ID = "<entry_id:re:[0-9]{1,18}>"


@api.post("/timesheets/upload")
@requires("batch:upload", machines=True, query={"dry_run": flag})
def upload():
    """Take one entry, or an array of up to 10,000, into the client's own source, where `external_id` tells them apart.

    An array gets a result for each row, whatever becomes of the others. The answer leaves after the commit, and
    sending the same again changes nothing; only a row without an `external_id` is a new entry every time. With
    `dry_run=1` nothing is stored.

    :takes: Upload
    :return 200: Uploaded
    :return 201: Uploaded
    :raise 409: `approved`: a single entry would change one that is approved
    :raise 422: `invalid`: a single entry is invalid
    """
    dry_run, body = request["asked"].get("dry_run", 0), read_body()
    single, results, entries = read_flawless(body) or read_rows(read_json(body))
    with request.app.db.transaction(keep=not dry_run) as db:
        upsert(db, request["caller"].client, entries)
        stored = find(db, "id = ? AND voided = 0", [results[0].id or None]) if single else None
    for result in results:
        if dry_run and result.status == "created":
            result.id = None  # an id that another entry will get would mislead
    if single:
        return answer_one(results[0], stored)
    counts = collections.Counter(result.status for result in results)
    return answer(Results(**{status: counts[status] for status in STATUSES}, results=results))


def answer_one(result, stored):
    """The answer to a single object: the flat entry; where there is none, because it is void, the result."""
    if result.status == "rejected":
        status = 409 if result.code == "approved" else 422
        raise Problem(status, result.code, "The entry was not stored; errors says why.", result.errors)
    if stored is None:
        return answer(result)
    entry = entry_of(stored)
    entry.id = result.id
    return answer(entry, 201 if result.status == "created" else 200)


class FlawlessRow(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A row of an upload as nearly all are: complete, with a key, each value of a type that may be right."""

    user_id: str
    date: str
    project: str
    hours: float
    external_id: str
    description: str | msgspec.UnsetType = msgspec.UNSET


FLAWLESS_ROWS = msgspec.json.Decoder(list[FlawlessRow])


def read_flawless(body):
    """What read_rows makes of an array without any fault, in half the time. None: it needs a closer look."""
    person, day, project, seconds, description, key = UPLOADED_ENTRY.values()
    results, entries = [], []
    try:
        rows = FLAWLESS_ROWS.decode(body)
        # The decoder lets a name stand twice. Its quotes tell: a row has five names and four texts in them, or with a
        # description six and five.
        texts = 9 * len(rows) + 2 * sum(row.description is not msgspec.UNSET for row in rows)
        if len(rows) > MAX_ROWS or body.count(b'"') > 2 * texts:
            return None
        for index, row in enumerate(rows):
            about = "" if row.description is msgspec.UNSET else description(row.description)
            fields = (person(row.user_id), day(row.date), project(row.project), seconds(row.hours), about)
            results.append(Result(index, key(row.external_id), "rejected"))
            entries.append((results[-1], fields))
    except (msgspec.DecodeError, ValueError):
        return None
    unique = len({result.external_id for result in results}) == len(rows)
    return (False, results, entries) if unique else None


def read_rows(sent):
    """Read an upload -> (whether it is a single object, a result for each row, the entries to store).

    An entry is (its result, fields): fields in the order of UPLOADED_ENTRY, or None to void it.
    :raise Problem: 413, more rows than an upload may hold
    """
    rows = sent if type(sent) is list else [sent]
    if len(rows) > MAX_ROWS:
        raise Problem(413, "too_many_rows", f"An upload holds at most {MAX_ROWS:,} rows, this one {len(rows):,}.")
    results, entries, first = [], [], {}
    for index, row in enumerate(rows):
        result = Result(index, None, "rejected")
        results.append(result)
        try:
            gone = type(row) is dict and "deleted" in row
            entry = read_entry(row, VOIDED_ENTRY if gone else UPLOADED_ENTRY)
            key = result.external_id = entry.pop("external_id")
            if key is not None and first.setdefault(key, index) != index:
                detail = f"is in row {first[key]} of this upload already; one of the two must be wrong"
                result.code, result.errors = "duplicate", [Fault("external_id", detail)]
            else:
                entries.append((result, None if gone else tuple(entry.values())))
        except Faults as faults:
            result.code, result.errors = "invalid", faults.args[0]
            if type(row) is dict and type(row.get("external_id")) is str:
                result.external_id = sayable(row["external_id"])
    return rows is not sent, results, entries


APPROVED = Fault("approved", "is true, so this entry cannot change until its approval is taken back")
UNKNOWN = (None, 0, 1)  # an entry that is not there is like a void one without an id


def upsert(db, source, entries):
    """Bring the source's entries to what was sent and complete their results."""
    keys = [result.external_id for result, _ in entries if result.external_id is not None]
    known, new, changes = known_entries(db, source, keys), [], []
    for result, fields in entries:
        old = known.get(result.external_id, UNKNOWN)
        entry_id, approved, voided = old[:3]
        if (fields is None and voided) or (not voided and fields == old[3:]):
            result.status = "unchanged"
        elif approved:
            result.code, result.errors = "approved", [APPROVED]
        elif entry_id is None:
            result.status = "created"
            new.append((result, (source, result.external_id, *fields)))
        else:
            result.status = "deleted" if fields is None else "updated"
            changes.append((*(fields or old[3:]), int(fields is None), utc_now(), source, entry_id))
        if entry_id is not None:
            result.id = entry_id
    keep_history(db, source, [change[-1] for change in changes])
    db.executemany(
        "UPDATE entry SET user_id = ?, date = ?, project = ?, seconds = ?, description = ?, voided = ?,"
        " changed_at = ?, changed_by = ? WHERE id = ?",
        changes,
    )
    for (result, _), entry_id in zip(new, insert(db, source, [row for _, row in new]), strict=True):
        result.id = entry_id


def known_entries(db, source, keys):
    """What the source has under these external ids, void ones too: {external_id: (id, approved, voided, *fields)}."""
    if not keys:
        return {}
    rows = db.execute(
        "SELECT external_id, id, approved, voided, user_id, date, project, seconds, description FROM entry"
        f" WHERE source = ? AND external_id IN ({', '.join('?' * len(keys))})",
        [source, *keys],
    )
    return {row[0]: row[1:] for row in rows}


def insert(db, who, rows):
    """Store new rows (source, external_id, *fields) -> their ids."""
    if not rows:
        return []
    ids, now = request.app.db.new_ids(db, len(rows)), utc_now()
    db.executemany(
        "INSERT INTO entry (id, source, external_id, user_id, date, project, seconds, description, changed_at,"
        " changed_by) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [(entry_id, *row, now, who) for entry_id, row in zip(ids, rows, strict=True)],
    )
    return ids


def find(db, condition, values):
    """The first row of COLUMNS that meets the condition, or None."""
    return db.execute(f"SELECT {COLUMNS} FROM entry WHERE {condition}", values).fetchone()


@api.get("/timesheets/upload")
@requires("batch:upload", machines=True, query={**PERIOD, **PAGE})
def uploaded():
    """What this client has uploaded under an `external_id`, so that a cron job can compare it with its tracker.

    :return 200: Entries
    """
    may_wait()  # a client's entries may be few, and far between
    return answer_entries("source = ? AND external_id IS NOT NULL", [request["caller"].client])


# ---- Routes: own entries, for people ----


@api.post("/timesheets")
@requires("create:timesheets")
def create():
    """Add an entry for the person whose token this is. With an Idempotency-Key, a repeat gets the first answer again.

    :takes: OwnEntry
    :return 201: Entry
    :raise 400: `invalid_key`: the Idempotency-Key is malformed
    :raise 422: `invalid` or `key_reused`: a field is at fault, or the Idempotency-Key came with another body before
    """
    body, key, caller = read_body(), idempotency_key(), request["caller"]
    try:
        entry = read_entry(read_json(body), OWN_ENTRY)
    except Faults as faults:
        raise Problem(422, "invalid", "The entry was not stored; errors says why.", faults.args[0]) from faults
    digest = hashlib.sha256(body).hexdigest()
    with request.app.db.transaction() as db:
        first = db.execute("SELECT body_sha256, answer FROM replay WHERE user_id = ? AND key = ?", (caller.person, key))
        sha256, text = first.fetchone() or (digest, None)
        if sha256 != digest:
            raise Problem(422, "key_reused", "This Idempotency-Key came with another body before; use a new key.")
        if text is None:
            row = (caller.client, None, caller.person, *entry.values())
            (entry_id,) = insert(db, caller.person, [row])
            text = msgspec.json.encode(entry_of(find(db, "id = ?", [entry_id]))).decode()
            if key is not None:
                db.execute("INSERT INTO replay VALUES (?, ?, ?, ?)", (caller.person, key, digest, text))
    return answer(msgspec.json.decode(text, type=Entry), 201)


@reads(type="string", pattern=r"^[\x21-\x7e]{1,200}$")
def idempotency_key():
    """The Idempotency-Key header, None without one. :raise Problem: 400, it is malformed."""
    key = request.environ.get("HTTP_IDEMPOTENCY_KEY")
    if key is not None and not re.fullmatch(idempotency_key.schema["pattern"], key):
        raise Problem(400, "invalid_key", "An Idempotency-Key is 1 to 200 visible ASCII characters.")
    return key


@api.get("/timesheets")
@requires(
    "read:timesheets", query={"user_id": text(1, 200), **PERIOD, "project": text(1, 200), "approved": flag, **PAGE}
)
def timesheets():
    """One's own entries. With approve:timesheets another's too (`user_id=`), or everybody's (`user_id=*`).

    :return 200: Entries
    """
    caller, person = request["caller"], request["asked"].get("user_id", request["caller"].person)
    if person != caller.person and "approve:timesheets" not in caller.scopes:
        raise insufficient_scope("approve:timesheets")
    return answer_entries("1 = 1") if person == "*" else answer_entries("user_id = ?", [person], of_one=True)


@api.get(f"/timesheets/{ENTRY_ID}")
@requires("read:timesheets")
def timesheet(entry_id):
    """One entry: one's own, or anybody's with approve:timesheets.

    :return 200: Entry
    :raise 404: `not_found`: there is none, or it is another's
    """
    with request.app.db.connection() as db:
        return answer(entry_or_404(db, entry_id, anybodys="approve:timesheets" in request["caller"].scopes))


def entry_or_404(db, entry_id, anybodys=False):
    """The live entry that the caller may touch; the query itself asks whose it is. :raise 404: there is none."""
    condition = "id = ? AND voided = 0 AND (user_id = ? OR ? = 1)"
    row = find(db, condition, (int(entry_id), request["caller"].person, int(anybodys)))
    if row is None:
        raise Problem(404, "not_found", "There is no such entry, or it is not yours.")
    return entry_of(row)


def change(db, entry, column, value):
    """Set a flag of an entry in the caller's name, and keep the version before."""
    keep_history(db, request["caller"].person, [entry.id])
    sql = f"UPDATE entry SET {column} = ?, changed_at = ?, changed_by = ? WHERE id = ?"
    db.execute(sql, (value, utc_now(), request["caller"].person, entry.id))


@api.delete(f"/timesheets/{ENTRY_ID}")
@requires("delete:timesheets")
def delete(entry_id):
    """Void one's own entry.

    :return 204:
    :raise 404: `not_found`: there is none, or it is another's
    :raise 409: `approved`: it is approved
    """
    with request.app.db.transaction() as db:
        entry = entry_or_404(db, entry_id)
        if entry.approved:
            raise Problem(409, "approved", "The entry is approved; it can go after its approval is taken back.")
        change(db, entry, "voided", 1)
    response.status = 204


# ---- Routes: approvals, for managers, and reports ----


@api.get("/approvals")
@requires("approve:timesheets", query={**PERIOD, "project": text(1, 200), **PAGE})
def approvals():
    """The entries that wait for approval, uploaded ones included.

    :return 200: Entries
    """
    return answer_entries("1 = 1", approved=[0])


@api.put(f"/approvals/{ENTRY_ID}")
@requires("approve:timesheets")
def approve(entry_id):
    """Approve an entry, once or again. A body is not read.

    :return 200: Entry
    :raise 403: `own_entry`: it is one's own
    :raise 404: `not_found`: there is none
    """
    with request.app.db.transaction() as db:
        entry = entry_or_404(db, entry_id, anybodys=True)
        if entry.user_id.casefold() == request["caller"].person.casefold():  # exports spell addresses as they like
            raise Problem(403, "own_entry", "Nobody approves their own hours; another approver can.")
        if not entry.approved:
            change(db, entry, "approved", 1)
            entry.approved = True
    return answer(entry)


@api.delete(f"/approvals/{ENTRY_ID}")
@requires("approve:timesheets")
def unapprove(entry_id):
    """Take an approval back, once or again, so that the entry can change.

    :return 204:
    :raise 404: `not_found`: there is no such entry
    """
    with request.app.db.transaction() as db:
        entry = entry_or_404(db, entry_id, anybodys=True)
        if entry.approved:
            change(db, entry, "approved", 0)
    response.status = 204


@api.get("/reports/weekly")
@requires("read:timesheets", query={**PERIOD, "by": one_of("user", "project", "user,project", "project,user")})
def weekly():
    """Hours by ISO week, one's own; with approve:timesheets everybody's.

    :return 200: Weeks
    """
    may_wait()  # it may read a year of hours
    query, caller = request["asked"], request["caller"]
    by = query.get("by", "user,project").replace("user", "user_id").split(",")
    whose, values = ("1 = 1", []) if "approve:timesheets" in caller.scopes else ("user_id = ?", [caller.person])
    rows = request.app.db.read(
        f"SELECT date, {', '.join(by)}, SUM(seconds) FROM entry WHERE voided = 0 AND {whose}"
        f" AND date BETWEEN ? AND ? GROUP BY date, {', '.join(by)}",
        [*values, query.get("from", "0000"), query.get("to", "9999")],
    )
    totals = collections.Counter()
    for written, *group, worked in rows:
        year, week, _ = date.fromisoformat(written).isocalendar()
        totals[f"{year}-W{week:02}", *group] += worked
    columns = ["week", *by, "hours"]
    lines = [(*group, in_hours(worked)) for group, worked in sorted(totals.items())]
    return answer_list([Week(**dict(zip(columns, line, strict=True))) for line in lines], columns)


@api.get("/health")
def health():
    """Whether the database answers, and how old the key set is. For load balancers.

    :return 200: Health
    :raise 503: `database_busy` or `database_unavailable`: the database does not answer
    """
    request.app.db.read("SELECT id FROM entry LIMIT 1")
    keys = request.app.keys
    age = round(keys.clock() - keys.fetched) if keys.keys else None
    return answer(Health("ok", KeySetHealth(keys.state(), age)))


# ---- Self-description: OpenAPI, read off the routes above ----


def refer(name):
    """A reference to a schema of the document."""
    return {"$ref": f"#/components/schemas/{name}"}


def taken(readers):
    """The schema of an object in a request: what the readers of its fields take."""
    properties = {field: read.schema for field, read in readers.items()}
    required = [field for field in readers if field not in OPTIONAL or "deleted" in readers]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


ANSWERS = [Entry, Results, Week, Health, ProblemDetails]
_, SCHEMAS = msgspec.json.schema_components(ANSWERS, ref_template="#/components/schemas/{name}")
NO_ID_YET = SCHEMAS["Entry"]["properties"] | {"id": {"type": "null"}}
SCHEMAS |= {
    "OwnEntry": taken(OWN_ENTRY),
    "UploadedEntry": taken(UPLOADED_ENTRY),
    "VoidedEntry": taken(VOIDED_ENTRY),
    "Row": {"anyOf": [refer("UploadedEntry"), refer("VoidedEntry")]},
    "Upload": {"anyOf": [refer("Row"), {"type": "array", "items": refer("Row"), "maxItems": MAX_ROWS}]},
    "Uploaded": {"anyOf": [refer("Results"), refer("Entry"), refer("Result"), refer("Rehearsed")]},
    "Rehearsed": SCHEMAS["Entry"] | {"title": "Rehearsed", "properties": NO_ID_YET},  # would be created: dry_run=1
    "Entries": {"type": "array", "items": refer("Entry")},
    "Weeks": {"type": "array", "items": refer("Week")},
    "Anything": {"type": "object"},
}
MEDIA = {  # the media types of an answer, where they are not just application/json
    "Entries": ["application/json", "text/csv"],
    "Weeks": ["application/json", "text/csv"],
    "ProblemDetails": ["application/problem+json"],
    "Page": ["text/html"],
    "": [],
}
GUARDED = {  # problems of every guarded route: status, and the codes with their reasons
    "400": "`invalid_query` or `invalid_request`: the query or the Authorization header is malformed",
    "401": "`token_required` or `invalid_token`: there is no access token, or it is not good for this API",
    "403": "`insufficient_scope` or `person_required`: the token does not permit this",
    "503": "`keys_unavailable`, `database_busy` or `database_unavailable`: try again after Retry-After seconds",
}
WRITING = {"507": "`storage_full`: the database's disk is full, and nothing was stored"}
WITH_BODY = {
    "400": "`malformed_json` or `duplicate_key`: the body is not JSON; `detail` says where",
    "408": "`body_timeout`: the body did not arrive in time",
    "413": "`too_large` or `too_many_rows`: the body is over a limit, which `detail` names",
    "415": "`unsupported_media_type`: the body is not labelled as JSON",
}
HEADERS = {  # header, what it says, the statuses or the schema that have it
    "Link": ("the address of the next page, with rel=next; on the last page there is none", {"Entries"}),
    "Location": ("where the new entry is", {"201"}),
    "WWW-Authenticate": ("what is wrong with the token, or what it lacks (RFC 6750 section 3)", {"400", "401", "403"}),
    "Retry-After": ("seconds after which to try again", {"503", "507"}),
}
PARAMETERS = {
    "from": "the first day",
    "to": "the last day, which counts too",
    "limit": "how many entries at most, 100 if it is not said; the Link header leads to the rest",
    "after": "where a page begins, as the Link header of the page before has it",
    "user_id": "whose entries, `*` for everybody's; another's need the scope approve:timesheets",
    "project": "only this project's entries",
    "approved": "only entries that are approved, or that are not",
    "by": "what to add up by, besides the week",
    "dry_run": "say what would happen, and store nothing",
    "entry_id": "the entry's `id`",
    "Idempotency-Key": "any text of your own making; sent again with the same body, it gets the first answer again",
}


def operation(route):
    """One route as an OpenAPI operation: its docstring's fields say what it takes and answers."""
    handler = route.callback
    about, *_ = (documentation := inspect.getdoc(handler)).partition("\n\n:")
    described = {"operationId": handler.__name__, "summary": re.split(r"\.(?:\s|$)", about)[0], "description": about}
    answers, problems = {}, [{"500": "`internal_error`: our fault"}]
    if hasattr(handler, "scope"):
        described["security"] = [{"auth0": [handler.scope]}]
        problems.append(GUARDED)
    if route.method != "GET":
        problems.append(WRITING)
    for kind, status, what in re.findall(r"^:(takes|return|raise) ?(\d*): ?(.*)$", documentation, re.MULTILINE):
        if kind == "takes":
            described["requestBody"] = {"required": True, "content": {"application/json": {"schema": refer(what)}}}
            problems.append(WITH_BODY)
        elif kind == "return":
            answers[status] = response_of(status, http.client.responses[int(status)], what)
        else:
            problems.append({status: what})
    for status in sorted({status for some in problems for status in some}):
        reasons = ", or ".join(some[status] for some in problems if status in some)
        answers[status] = response_of(status, reasons, "ProblemDetails")
    return described | {"responses": answers, "parameters": parameters(route)}


def response_of(status, about, schema):
    """A response as OpenAPI has it; what is no JSON is text to it."""
    names = [name for name, (_, having) in HEADERS.items() if having & {status, schema}]
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
    content = {
        media: {"schema": {"type": "string"} if media.startswith("text/") else refer(schema)}
        for media in MEDIA.get(schema, ["application/json"])
    }
    return {"description": about, "headers": headers, "content": content}


def parameters(route):
    """The parameters of a route, in its path, query and headers."""
    found = [("query", name, read.schema) for name, read in getattr(route.callback, "query", {}).items()]
    if ENTRY_ID in route.rule:
        found.append(("path", "entry_id", {"type": "integer", "minimum": 1, "maximum": 10**18 - 1}))
    if "Idempotency-Key" in route.callback.__doc__:
        found.append(("header", "Idempotency-Key", idempotency_key.schema))
    return [
        {"name": name, "in": where, "schema": schema, "description": PARAMETERS[name], "required": where == "path"}
        for where, name, schema in found
    ]


@api.get("/.well-known/oauth-protected-resource")
def resource_metadata():
    """Which issuer this API trusts, and its scopes, for clients that have only its address (RFC 9728).

    :return 200: Anything
    :raise 404: `not_found`: PUBLIC_URL does not say how callers see this API
    """
    settings = request.app.settings
    if not settings.public_url:
        raise Problem(
            404, "not_found", "This API was not told its own address (PUBLIC_URL), so it cannot describe itself."
        )
    scopes = sorted({route.callback.scope for route in request.app.routes if hasattr(route.callback, "scope")})
    facts = {"resource": settings.public_url, "authorization_servers": [settings.issuer], "scopes_supported": scopes}
    return answer(facts | {"bearer_methods_supported": ["header"], "resource_name": "Timesheets API"})


@api.get("/openapi.json")
def description():
    """This description of the API, in OpenAPI 3.1.

    :return 200: Anything
    """
    return answer(openapi(request.app))


def path_of(route):
    """A route's path as OpenAPI writes it."""
    return route.rule.replace(ENTRY_ID, "{entry_id}")


def openapi(app):
    """The API's description (OpenAPI 3.1), read off its routes."""
    paths, scopes = collections.defaultdict(dict), collections.defaultdict(list)
    for route in app.routes:
        paths[path_of(route)][route.method.lower()] = operation(route)
        if hasattr(route.callback, "scope"):
            scopes[route.callback.scope].append(f"{route.method} {path_of(route)}")
    issuer = app.settings.issuer.rstrip("/")
    flow = {"tokenUrl": issuer + "/oauth/token", "scopes": {scope: ", ".join(opens) for scope, opens in scopes.items()}}
    flows = {"clientCredentials": flow, "authorizationCode": flow | {"authorizationUrl": issuer + "/authorize"}}
    headers = {name: {"description": what, "schema": {"type": "string"}} for name, (what, _) in HEADERS.items()}
    title, _, about = __doc__.partition("\n\n")[0].partition(": ")
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "description": about, "version": VERSION},
        "servers": [{"url": app.settings.public_url or "/"}],
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "headers": headers,
            "securitySchemes": {"auth0": {"type": "oauth2", "flows": flows}},
        },
    }


STYLE = """
:root { color-scheme: light dark; color: light-dark(#1d2330, #e6e8ee); background: light-dark(#fcfcfa, #14171d) }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 46rem; font: 1rem/1.55 system-ui, sans-serif }
h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.05rem; margin: 2.2rem 0 0; overflow-wrap: anywhere }
p { margin: .4rem 0 } .dim { color: light-dark(#505a6e, #aab2c2) }
.key { color: light-dark(#0b5d46, #7fd8b8); font-weight: 600; overflow-wrap: anywhere }
pre { background: light-dark(#eef0ec, #20252f); padding: .7rem .9rem; border-radius: .4rem; overflow-x: auto;
      font-size: .85rem }
"""
POLICY = "default-src 'none'; style-src 'sha256-{}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
PAGE_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{info['title']}}</title>
<style>{{!style}}</style>
</head>
<body>
<main>
<h1>{{info['title']}}</h1>
<p>{{info['description']}}</p>
<p class="dim">Tokens are signed by <span class="key">{{settings.issuer}}</span> for the audience
<span class="key">{{settings.audience}}</span>. The state of the issuer's key set: <span class="key">{{keys}}</span>.
The same in a form for programs, with every field and error: <a href="{{home}}/openapi.json">openapi.json</a>.</p>
<p class="dim">In the lines below, <code>$TOKEN</code> is an access token from the issuer,
{{!'' if home else "<code>$API</code> is this page's address without its last slash,"}} and
<code>entry.json</code> holds an entry. Only in an upload it says <code>user_id</code> and <code>external_id</code>:</p>
<pre tabindex="0" role="region" aria-label="An entry">{"date": "2026-11-20", "project": "StoreZero", "hours": 7.5,
 "user_id": "jane@contractor.example", "external_id": "tracker:1"}</pre>
% for path, operations in paths.items():
% for method, operation in operations.items():
% scope = operation['security'][0]['auth0'][0] if 'security' in operation else ''
<h2>{{method.upper()}} {{path}}</h2>
<p>{{!marked(operation['description'])}}</p>
<p class="dim">{{!'Needs the scope <span class="key">' + scope + '</span>.' if scope else 'Needs no token.'}}</p>
<pre tabindex="0" role="region" aria-label="curl for {{method.upper()}} {{path}}">curl -X {{method.upper()}} \\
% if scope:
-H "Authorization: Bearer $TOKEN" \\
% end
% if 'requestBody' in operation:
-H "Content-Type: application/json" -d @entry.json \\
% end
{{home or '$API'}}{{path.replace('{entry_id}', '14')}}</pre>
% end
% end
</main>
</body>
</html>
"""


def marked(text):
    """Markdown's paragraphs and `code`, the only marks that descriptions use, as HTML."""
    return re.sub("`(.+?)`", r"<code>\1</code>", bottle.html_escape(text)).replace("\n\n", "</p><p>")


@api.get("/")
def page():
    """What this API is, for people.

    :return 200: Page
    """
    app = request.app
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    response.set_header("Content-Security-Policy", POLICY.format(digest))
    response.content_type = "text/html; charset=utf-8"
    facts = {"settings": app.settings, "home": app.settings.public_url, "keys": app.keys.state()}
    return bottle.template(PAGE_TEMPLATE, openapi(app), facts, style=STYLE, marked=marked)


# ---- The application, and serving it ----


LINE = "%s %s %s %a %s %s ms %a %a %s"
FACTS = ("time", "level", "method", "path", "status", "ms", "caller", "reason", "request_id")
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


class App(bottle.Bottle):
    """The routes above, with the settings, the database and the key set that they use."""

    def __init__(self, settings, clock, keys):
        super().__init__()
        self.settings, self.clock, self.keys, self.db = settings, clock, keys, open_database(settings.database_url)
        # The verdict on a token by a key never changes, so a token that comes again costs no RSA operation.
        self.judge = functools.lru_cache(maxsize=1024)(functools.partial(judge, settings))
        self.default_error_handler = problem_json
        self.merge(api)
        if settings.cors_origins:
            self.add_hook("after_request", cors_headers)

    def wsgi(self, environ, start_response):
        """Answer one request, and log it in a line: what was asked, what became of it, who asked."""
        began, given = time.perf_counter(), environ.get("HTTP_X_REQUEST_ID", "")
        request_id = given if REQUEST_ID.fullmatch(given) else f"{random.getrandbits(64):016x}"
        environ["request_id"], environ["reason"] = request_id, ""

        def start(status, headers, fault=None):
            return start_response(status, [*headers, *ALWAYS_SENT, ("X-Request-ID", request_id)], fault)

        answer = super().wsgi(environ, start)
        if log.isEnabledFor(logging.INFO):
            caller, ms = environ.get("caller"), round((time.perf_counter() - began) * 1000, 1)
            asker = caller and (caller.person or caller.client)
            asked = (environ["REQUEST_METHOD"], environ["PATH_INFO"], response.status_code, ms, asker)
            facts = (utc_now(), "INFO", *asked, environ["reason"], request_id)
            as_json = self.settings.log_format == "json"
            line = msgspec.json.encode(dict(zip(FACTS, facts, strict=True))).decode() if as_json else LINE % facts
            sys.stderr.write(line + "\n")  # logging proper would take a tenth of the time of a request
        return answer


ALWAYS_SENT = [("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")]
CORS_HEADERS = {
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Idempotency-Key, X-Request-ID",
    "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE",
    "Access-Control-Expose-Headers": "Link, Location, Retry-After, WWW-Authenticate, X-Request-ID",
    "Access-Control-Max-Age": "600",
}


def cors_headers():
    """Let the browser origins that CORS_ORIGINS names read the answer, and nobody else's."""
    response.add_header("Vary", "Origin")
    origin = request.environ.get("HTTP_ORIGIN")
    if origin in request.app.settings.cors_origins:
        response.headers.update(CORS_HEADERS | {"Access-Control-Allow-Origin": origin})


def create_app(settings=None, clock=time.time, keys=None):
    """The WSGI application, by default with settings from the environment; any WSGI server can serve it.

    Opens the database and starts to fetch the key set, without waiting for it. :raise Faults: settings or database.
    :raise OSError: PostgreSQL cannot be reached.
    """
    settings = settings or Settings.from_env(os.environ)
    app = App(settings, clock, keys or KeySet(settings.keys_url()))
    app.db.migrate()
    app.keys.refresh(wait=False)
    return app


def gateway(app):
    """Serve a WSGI application from an event loop (RSGI, Granian's own interface), so that slow callers hold no thread.

    A request runs on the loop until it would have to wait (`may_wait`). Up to there it has changed nothing, so it can
    start over in a thread. Its body is read when it is asked for, and cut off if it takes too long: whoever is refused
    before sends it in vain.
    """
    threads = concurrent.futures.ThreadPoolExecutor(THREADS)

    async def serve_one(scope, protocol):
        environ, body, waits, answer = wsgi_environ(scope), NoBody(BodyWanted), False, None
        while answer is None:
            try:
                if waits:
                    answer = await asyncio.get_running_loop().run_in_executor(threads, call, app, environ, body)
                else:
                    answer = call(app, environ, body)
            except BodyWanted:
                body, waits = await body_in_time(protocol), True
            except MustWait:
                waits = True
        protocol.response_bytes(*answer)

    return serve_one


class NoBody:
    """Stands in the place of a body that is not here, and says why to who reads it."""

    def __init__(self, why):
        self.why = why

    def read(self, size):
        """:raise BodyWanted: it has not been read yet. :raise Problem: 408, it did not come in time."""
        raise self.why


async def body_in_time(protocol):
    """A request's body as a file, cut off where it is too long for any route; NoBody when it is too slow."""
    body = io.BytesIO()
    try:
        async with asyncio.timeout(BODY_DEADLINE):
            async for chunk in protocol:
                body.write(chunk)
                if body.tell() > MAX_BODY:
                    break
    except TimeoutError:
        late = f"The body did not arrive within {BODY_DEADLINE} s; nothing was stored."
        return NoBody(Problem(408, "body_timeout", late))
    body.seek(0)
    return body


@functools.lru_cache(maxsize=256)
def wsgi_name(header):
    """The WSGI variable for a header. One with an underscore keeps its case, or it would pass for one with dashes."""
    name = header if "_" in header else header.upper().replace("-", "_")
    return name if name in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_" + name


def wsgi_environ(scope):
    """A WSGI environment (PEP 3333) for an RSGI scope. A header that comes twice is joined by a comma."""
    path = scope.path.encode().decode("latin-1")
    environ = {"REQUEST_METHOD": scope.method, "PATH_INFO": path, "QUERY_STRING": scope.query_string}
    environ |= {"SERVER_NAME": "", "SERVER_PORT": "", "wsgi.url_scheme": scope.scheme, "wsgi.errors": sys.stderr}
    for header in scope.headers.keys():  # noqa: SIM118 (it is no dict)
        # Granian holds back a value outside ASCII: better an empty one than none, which means no such header. Beside
        # a second value it cannot be seen at all.
        environ[wsgi_name(header)] = ",".join(scope.headers.get_all(header))
    environ["wsgi.input_terminated"] = True
    return environ


def call(app, environ, body):
    """Run one request -> (status, headers, body)."""
    start = []
    parts = app({**environ, "wsgi.input": body}, lambda status, headers, fault=None: start.extend((status, headers)))
    return int(start[0][:3]), [(name.lower(), value) for name, value in start[1]], b"".join(parts)


class JsonLines(logging.Formatter):
    """Log records as JSON, one a line, as requests are logged."""

    def format(self, record):
        """A record's time, level and message."""
        return json.dumps({"time": utc_now(), "level": record.levelname, "message": super().format(record)})


def log_to_stderr(settings):
    """Log plain lines, or JSON."""
    handler = logging.StreamHandler()
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    plain.converter = time.gmtime
    handler.setFormatter(JsonLines() if settings.log_format == "json" else plain)
    log.setLevel(logging.INFO)
    log.handlers = [handler]


def worker(settings):
    """What each worker process serves."""
    # Ctrl-C reaches every process at once, and the first one then ends the workers; a worker that gets both signals
    # may lock up (seen with Granian 2.8), so it does not listen to Ctrl-C.
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    log_to_stderr(settings)
    return gateway(create_app(settings))


def serve(settings):
    """Serve until SIGTERM or Ctrl-C; requests in flight finish. :raise Faults: database. :raise OSError: port."""
    from granian import Granian  # here, because `import timesheets` needs no server and should be quick
    from granian.constants import HTTPModes, Interfaces
    from granian.http import HTTP1Settings
    from granian.log import LogLevels

    open_database(settings.database_url).migrate()
    if settings.tls_cert:
        try:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(settings.tls_cert, settings.tls_key, password=lambda: "")  # asks nobody for one
        except OSError as fault:
            says = "TLS_CERT and TLS_KEY are no certificate and its key, in PEM and without a pass phrase"
            raise Faults([f"{says}: {fault}."]) from fault
    family, host = socket.AF_INET, settings.host
    if ":" in host:
        family, host = socket.AF_INET6, f"[{host}]"
    try:
        with socket.create_server((settings.host, settings.port), family=family) as probe:
            # A free port for 0. A port in use ends here, and is not shared by accident.
            address, port = probe.getsockname()[:2]
    except OSError as fault:
        sys.exit(f"The API cannot listen on HOST {settings.host}, PORT {settings.port}: {fault}")
    where = f"{'https' if settings.tls_cert else 'http'}://{host}:{port}"
    print(f"Timesheets API on {where}, trusting {settings.issuer} for {settings.audience}", flush=True)
    Granian(
        "timesheets",
        interface=Interfaces.RSGI,
        http=HTTPModes.http1,  # an HTTP/2 connection left open would hold up the stop
        http1_settings=HTTP1Settings(header_read_timeout=10_000),
        websockets=False,
        backpressure=4096,
        address=address,
        port=port,
        workers=settings.workers,
        ssl_cert=pathlib.Path(settings.tls_cert) if settings.tls_cert else None,
        ssl_key=pathlib.Path(settings.tls_key) if settings.tls_key else None,
        respawn_failed_workers=True,
        workers_kill_timeout=BODY_DEADLINE + 5,  # what is in flight has ended by then
        log_level=LogLevels.warning,
    ).serve(target_loader=functools.partial(worker, settings), wrap_loader=False)


# ---- `explain`: what a token, or this set-up, lacks ----


def mark(good, name, found, advice=""):
    """Print one line of an explanation, with the advice if it is needed; -> whether all is well with it."""
    shown = ascii(str(found))[1:-1][:120]  # whatever a token says, the terminal gets plain characters
    print(f"{'✓' if good else '✗'} {name:10} {shown}{f'   ({advice})' if not good else ''}")
    return good


def explain_token(app, token):
    """Print what a token says beside what this API expects, then the verdict; -> whether it would be let in.

    Never prints the signature: what is printed cannot be used to call anything.
    """
    try:
        header, claims = (dict(json.loads(base64.urlsafe_b64decode(part + "=="))) for part in token.split(".")[:2])
    except (ValueError, TypeError, RecursionError):
        return mark(False, "token", "is no JWT", "not copied whole? Auth0 gives an opaque one to who named no audience")
    issuers, audience = [app.settings.issuer, *app.settings.extra_issuers], claims.get("aud")
    audiences, kids = audience if isinstance(audience, list) else [audience], ", ".join(app.keys.keys)
    now, exp, iat, nbf = app.clock(), claims.get("exp"), claims.get("iat"), claims.get("nbf")
    under_way = "nbf" not in claims or (is_time(nbf) and nbf - LEEWAY <= now)
    for good, name, found, advice in (
        (header.get("alg") in [*ALGORITHMS], "alg", header.get("alg"), "an asymmetric algorithm, RS256 by default"),
        (str(header.get("typ", "JWT")).lower() in TOKEN_TYPES, "typ", header.get("typ"), "at+jwt or JWT, or nothing"),
        (header.get("kid") in [*app.keys.keys], "kid", header.get("kid"), f"one of: {kids or 'none can be fetched'}"),
        (claims.get("iss") in issuers, "iss", claims.get("iss"), f"exactly {' or '.join(issuers)}"),
        (app.settings.audience in audiences, "aud", audience, f"exactly {app.settings.audience}"),
        (is_time(exp) and exp + LEEWAY > now, "exp", moment(exp, now), "a time ahead of us; get a new token"),
        (is_time(iat) and iat - LEEWAY <= now, "iat", moment(iat, now), "a time behind us"),
        (under_way, "nbf", moment(nbf, now), "a time behind us, or nothing"),
        (claims.get("sub"), "sub", claims.get("sub"), "who it speaks for"),
        ("cnf" not in claims, "cnf", claims.get("cnf"), "nothing; this API cannot check the proof of a key"),
    ):
        if found is not None or not good:
            mark(good, name, found, advice)
    try:
        caller = verify(token, app)
    except Problem as problem:
        why = problem.reason if problem.status_code == 401 else problem.detail
        return mark(False, "verdict", f"refused with {problem.status_code}", why)
    name = f"put the claim {app.settings.user_claim} into it (USER_CLAIM), or no route for people opens"
    mark(caller.person != "", "speaks for", caller.person or f"the program {caller.client}", name)
    mark(any(caller.scopes), "scope", " ".join(sorted(caller.scopes)), "it grants none; see the README on scopes")
    guarded = [route for route in api.routes if getattr(route.callback, "scope", None) in caller.scopes]
    opened = [route for route in guarded if caller.person or route.callback.machines]
    for route in opened:
        mark(True, "opens", f"{route.method} {path_of(route)}")
    advice = "403 everywhere: a program's token opens uploads only, a person's the rest, each with its scope"
    return mark(bool(opened), "verdict", "accepted" if opened else "accepted, but it opens no route", advice)


def moment(seconds, now):
    """A NumericDate for people: how far it is from now."""
    if not is_time(seconds) or seconds >= 2**45:  # a million years, past which timedelta cannot go
        return seconds
    distance = timedelta(seconds=round(abs(seconds - now)))
    return f"{seconds}, {f'in {distance}' if seconds > now else f'{distance} ago'}"


def explain_settings(app):
    """Print whether settings, issuer and database fit together, and what to mend; -> whether they do."""
    for field in dataclasses.fields(app.settings):
        value = getattr(app.settings, field.name)
        shown = ", ".join(value) if type(value) is tuple else str(value)
        mark(True, field.metadata["variable"], re.sub(r"(?<=//).*@|(?<=\?).*", "...", shown) or "none")
    discovery, issuer = app.settings.issuer.rstrip("/") + "/.well-known/openid-configuration", app.settings.issuer
    try:
        with urllib.request.urlopen(discovery, timeout=DEADLINE) as answer:
            found = dict(json.loads(answer.read(256 * 1024)))
        good = mark(found.get("issuer") == issuer, "issuer", found.get("issuer"), "set AUTH0_DOMAIN to this")
        good &= mark(found.get("jwks_uri") == app.keys.address, "jwks_uri", found.get("jwks_uri"), "set JWKS_URL to it")
    except (OSError, ValueError, TypeError, http.client.HTTPException) as fault:
        good = mark(False, "issuer", f"does not describe itself at {discovery}", f"is AUTH0_DOMAIN right? {fault}")
    advice = f"{app.keys.address} has none that can verify a token, or is away"
    good &= mark(bool(app.keys.keys), "keys", ", ".join(app.keys.keys) or "none", advice)
    try:
        app.db.migrate()
        return mark(True, "database", "answers") and good
    except Faults as faults:
        return mark(False, "database", "cannot be used", " ".join(faults.args[0]))
    except OSError as fault:
        return mark(False, "database", "is away", str(fault))


def explain(settings, words):
    """Explain the token in `words`, or the set-up if there are none; -> whether all is well with it."""
    app = App(settings, time.time, KeySet(settings.keys_url()))
    app.keys.refresh(wait=True)
    token = sys.stdin.read() if words == ["-"] else " ".join(words)
    token = re.sub("^(Authorization: *)?Bearer( +|$)", "", token.strip(), flags=re.IGNORECASE)
    if words and not token:
        raise Faults(["There is no token to explain; without any argument, `explain` looks at the settings."])
    try:
        good = explain_token(app, token) if words else explain_settings(app)
        sys.stdout.flush()
    except BrokenPipeError:  # `explain | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return good


def main(arguments):
    """Serve with settings from flags and environment; exit with 78 (sysexits: configuration) when they are at fault."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], epilog=EPILOG)
    for field in dataclasses.fields(Settings):
        variable, meaning, _ = field.metadata.values()
        default = "required" if field.default is dataclasses.MISSING else f"default: {field.default or 'none'}"
        flag = f"--{variable.lower().replace('_', '-')}"
        parser.add_argument(flag, dest=variable, metavar="…", help=f"{meaning} ({default})")
    parser.add_argument("--version", action="version", version=VERSION)
    parser.add_argument("command", nargs="?", choices=["explain"], help="say what a token, or this set-up, lacks")
    parser.add_argument("token", nargs="*", help="the token to explain; - reads it from standard input")
    given = vars(parser.parse_args(arguments))
    command, words = given.pop("command"), given.pop("token")
    sys.stdout = sys.stdout or open(os.devnull, "w")  # there is none after `>&-`
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that cannot show a tick shows its name
        sys.stdout.reconfigure(errors="namereplace")
    try:
        settings = Settings.from_env(os.environ | {name: value for name, value in given.items() if value is not None})
        if command:
            sys.exit(int(not explain(settings, words)))
        serve(settings)
    except Faults as faults:
        print(*faults.args[0], sep="\n", file=sys.stderr)
        sys.exit(78)
    except OSError as fault:
        sys.exit(f"The API cannot go on: {fault}")


EPILOG = """A flag overrides the environment variable of its name. `explain` alone makes the database if there is none.
Exit status: 0 after SIGTERM, 1 when the port or the database's server cannot be had, or something explained is
refused; 78 for the settings."""

if __name__ == "__main__":
    main(sys.argv[1:])
