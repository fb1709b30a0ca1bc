#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["bottle>=0.13.4", "pyjwt[crypto]>=2.15.1", "granian>=2.8", "msgspec>=0.22"]
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
    read:timesheets     GET /timesheets, /reports               people, of their own
    delete:timesheets   DELETE /timesheets/ID                   people
    approve:timesheets  /approvals, and others' entries         managers
    report:timesheets   others' entries and /reports            payroll, people and programs

The file follows a request: what it is made of, who sends it, where it is stored, what each route does. Behind
"Around it" stands what a reader can leave for later: self-description, serving, PostgreSQL, `explain`.
"""

import argparse
import asyncio
import base64
import collections
import concurrent.futures
import contextlib
import contextvars
import csv
import errno
import functools
import hashlib
import http.client
import inspect
import io
import json
import logging
import math
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
import unicodedata
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args

import bottle
import jwt
import msgspec
from bottle import request, response
from cryptography.exceptions import UnsupportedAlgorithm
from msgspec import UNSET, Meta, Struct, UnsetType, field

VERSION = "1.0.0"
log = logging.getLogger("timesheets")

# ---- Fields: one definition for reading, for OpenAPI, for --help and for the sentence that names a fault ----

# Settings, queries and bodies are Structs. Beside a field's type stands what its value must be, and whatever is said
# or checked of the field comes from there.

Input = TypeVar("Input", bound=Struct)
MAX_FAULTS = 20  # so many are named, of the others only how many


class Fault(Struct):
    """A field, or a parameter of the query, and what is wrong with it."""

    field: str
    detail: str


class Faults(ValueError):
    """Everything that is wrong with some input, as one list: a Fault for each field, or sentences."""

    def __init__(self, faults: Sequence[Any]) -> None:
        super().__init__(faults)
        self.faults = list(faults)


class Field(NamedTuple):
    """What a Struct says of one of its fields."""

    name: str  # as callers write it
    attribute: str
    type: Any
    required: bool
    default: Any
    must_be: str
    reader: Callable[[Any], Any] | None
    about: str


def must_be(sentence: str, reader: Callable[[Any], Any] | None = None, **limits: Any) -> Meta:
    """What a field must be, in words for people. msgspec checks its type and `limits`, then `reader` has a look.

    A reader gives what is kept of a value. :raise ValueError: it is none; the text, if any, replaces the sentence
    """
    return Meta(extra={"must_be": sentence, "reader": reader}, **limits)


def whole(low: int, high: int) -> Meta:
    """What a whole number must be."""
    return must_be(f"a whole number from {low} to {high}", ge=low, le=high)


def about(text: str) -> Meta:
    """What a field is for."""
    return Meta(description=text)


def metas(kind: Any) -> Iterator[Meta]:
    """What a type is annotated with, itself or inside."""
    yield from (mark for mark in getattr(kind, "__metadata__", ()) if isinstance(mark, Meta))
    for part in get_args(kind):
        yield from metas(part)


@functools.cache
def fields(struct: type[Struct]) -> list[Field]:
    """The fields of a Struct, in order."""
    found = []
    for each in msgspec.structs.fields(struct):
        marks = list(metas(each.type))
        rule: dict[Any, Any] = next((mark.extra for mark in marks if mark.extra), {"must_be": "text", "reader": None})
        meaning = next((mark.description for mark in marks if mark.description), "")
        facts = (each.encode_name, each.name, each.type, each.required, each.default)
        found.append(Field(*facts, rule["must_be"], rule["reader"], meaning))
    return found


def read(struct: type[Input], given: Mapping[str, Any]) -> Input:
    """What was given, as a Struct. :raise Faults: what is missing, unknown, or not what it must be"""
    if not isinstance(given, Mapping):
        raise Faults([Fault("", "must be a JSON object")])
    values, faults, known = {}, [], fields(struct)
    for each in known:
        try:
            if each.name in given:
                value = given[each.name]
                value = msgspec.convert(value.strip() if type(value) is str else value, each.type, strict=False)
                values[each.attribute] = each.reader(value) if each.reader else value
            elif each.required:
                faults.append(Fault(each.name, "is missing"))
        except msgspec.ValidationError:
            faults.append(Fault(each.name, f"must be {each.must_be}"))
        except ValueError as fault:
            faults.append(Fault(each.name, str(fault) or f"must be {each.must_be}"))
    names = [each.name for each in known]
    others = [name for name in given if name not in names]
    for name in others[:MAX_FAULTS]:
        servers = issubclass(struct, OwnEntry) and name in Entry.__struct_fields__
        faults.append(Fault(sayable(name), "is set by the server" if servers else "unknown field"))
    if (number := len(faults) + len(others[MAX_FAULTS:])) > MAX_FAULTS:
        faults[MAX_FAULTS:] = [Fault("", f"and {number - MAX_FAULTS} more faults")]
    if faults:
        raise Faults(faults)
    return struct(**values)


@functools.cache
def readers(struct: type[Struct]) -> list[tuple[str, Callable[[Any], Any]]]:
    """The fields of a Struct that have a reader."""
    return [(each.attribute, each.reader) for each in fields(struct) if each.reader]


def finish(entry: Struct) -> None:
    """Let the readers have a look at what msgspec has decoded itself. :raise ValueError: one does not take its value"""
    for attribute, reader in readers(type(entry)):
        if (value := getattr(entry, attribute)) is not UNSET:
            setattr(entry, attribute, reader(value))


def sayable(text: str) -> str:
    """What somebody sent, short enough and whole enough to be sent back."""
    return text[:200].encode(errors="replace").decode()


# ---- Values: what a text, a date, hours and a person are ----

# Every text is trimmed and searched for bad characters in `plain`, every name of a person goes through `person`.

BAD_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # controls, and halves of a character
BLANK_FILLER = re.compile(  # letters, marks and others to Unicode, and nothing to the eye
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2028\u2029\u2065\u2800\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8"
    "\U000e0000-\U000e0fff]"
)
TIME = r"([01]\d|2[0-3]):[0-5]\d(:[0-5]\d([.,]\d{1,30})?)?"
ISO_DATE = re.compile(rf"(\d{{4}}-\d\d-\d\d)([T ]{TIME}( ?(Z|[+-]\d\d:?\d\d))?)?", re.ASCII)
JAVA_DATE = re.compile(rf"[A-Z][a-z]{{2}} ([A-Z][a-z]{{2}} \d\d) {TIME} [\w:+-]{{1,20}} (?P<year>\d{{4}})", re.ASCII)
remember = functools.lru_cache(maxsize=4096)  # a batch says most things many times


def plain(text: str) -> str:
    """Text without blanks around it."""
    trimmed = text.strip()
    if not trimmed.isprintable() and BAD_CHARACTER.search(trimmed):
        raise ValueError("must not hold control characters or broken Unicode")
    if text and not trimmed:
        raise ValueError  # whether it may be empty is for the limits of its field to say
    return trimmed


@remember
def person(text: str) -> str:
    """The one spelling of a person, by which uploads, tokens and queries name them.

    Full-width and composed characters become the usual ones, and an address is in small letters.
    """
    spelled = unicodedata.normalize("NFKC", plain(text)).strip()
    if "@" in spelled:
        spelled = re.sub(r"[.\s]+$", "", unicodedata.normalize("NFKC", spelled.casefold()))
    unseen = BLANK_FILLER.search(spelled) or any(unicodedata.category(character) == "Cf" for character in spelled)
    if unseen or spelled in ("", "*") or len(spelled) > 200:
        raise ValueError("must be a name or an address without characters that nobody sees")
    return spelled


def anybody(text: str) -> str:
    """A person, or `*` for everybody."""
    return text if text == "*" else person(text)


def civil_day(text: str) -> str:
    """YYYY-MM-DD of that, of an ISO date-time or of Java's Date.toString(): the day as written, in any zone."""
    with contextlib.suppress(ValueError):  # there is no such day
        if match := ISO_DATE.fullmatch(text.strip()):
            return date.fromisoformat(match[1]).isoformat()
        if match := JAVA_DATE.fullmatch(text.strip()):
            return datetime.strptime(f"{match[1]} {match['year']}", "%b %d %Y").date().isoformat()
    raise ValueError


@remember
def worked_day(text: str) -> str:
    """A day on which somebody can have worked: from 2000 to tomorrow, wherever they are."""
    worked = civil_day(text)
    if not "2000-01-01" <= worked <= (datetime.now(UTC) + timedelta(days=1)).date().isoformat():
        raise ValueError("must be from 2000-01-01 to tomorrow")
    return worked


def is_true(value: bool) -> bool:
    """The mark of an entry that is gone upstream."""
    if not value:
        raise ValueError
    return value


TEXT, FLAG = "text of 1 to 200 characters", "1, 0, true or false"
DATES = {"examples": ["2026-11-20", "2026-11-20T17:40:20.095Z"]}
HOURS = {"type": ["number", "string"], "examples": [7.5]}  # as text, too, in a form of the reference clients
HALF_A_SECOND = 0.5 / 3600  # what is not longer would be stored as none
Text = Annotated[str, must_be(TEXT, plain, min_length=1, max_length=200)]
Project = Annotated[str, must_be(TEXT, remember(plain), min_length=1, max_length=200)]
Description = Annotated[str, must_be("text of at most 5,000 characters", plain, max_length=5_000)]
Reason = Annotated[str, must_be("text of at most 1,000 characters", plain, max_length=1_000)]
Person = Annotated[str, must_be(TEXT, person, min_length=1, max_length=200)]
Anybody = Annotated[str, must_be(TEXT, anybody, min_length=1, max_length=200)]
Day = Annotated[str, must_be("a date such as 2026-11-20", civil_day, max_length=64, extra_json_schema=DATES)]
WorkedDay = Annotated[str, must_be("a date such as 2026-11-20", worked_day, max_length=64, extra_json_schema=DATES)]
RIGHT_HOURS = must_be("a number of hours such as 7.5, more than 0 and at most 24", gt=HALF_A_SECOND, le=24)
Hours = Annotated[float, RIGHT_HOURS, Meta(extra_json_schema=HOURS)]
PAGE_START = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}\.[0-9]{1,18}$"
PageStart = Annotated[str, must_be("as in the Link header of the page before", pattern=PAGE_START)]
GROUPINGS = must_be("user, project, user,project or project,user")
Grouping = Annotated[Literal["user", "project", "user,project", "project,user"], GROUPINGS]
SomeHours = Annotated[float, must_be("a number of hours such as 12", ge=0, le=10_000)]
KEY_OF_REQUEST = must_be("1 to 200 visible ASCII characters", pattern=r"^[\x21-\x7e]{1,200}$")
Value = TypeVar("Value")
Maybe = Union[Value, UnsetType]  # noqa: UP007 (mypy takes no other form of a generic alias)
OneProject = Maybe[Annotated[Text, about("only this project's entries")]]
OnePerson = Maybe[Annotated[Anybody, about("whose entries, `*` for all; others' need approve: or report:timesheets")]]
OneState = Maybe[Annotated[bool, must_be(FLAG, int), about("only approved entries, or only others")]]


# ---- Settings: read from the environment, all faults reported at once ----

# Each variable is a command-line flag too. Nothing is read, opened or fetched when this file is imported.

LOOPBACK = re.compile(r"localhost|127(\.\d{1,3}){3}|\[::1\]", re.IGNORECASE)
ADDRESS = re.compile(  # no name and password, no query, no fragment, nothing that a header could not hold
    r"(?P<scheme>https?)://(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(:(?P<port>\d{1,5}))?(/[\w.~!$&'()*+,;=:@%/-]*)?",
    re.ASCII | re.IGNORECASE,
)


def url(text: str) -> str:
    """An absolute address, encrypted unless it stays on this machine."""
    match = ADDRESS.fullmatch(text)
    if match is None or int(match["port"] or 0) > 65_535:
        raise ValueError
    if match["scheme"].lower() == "http" and not LOOPBACK.fullmatch(match["host"]):
        raise ValueError("must start with https://; what goes over http:// can be read and changed on its way")
    return text


def issuer_url(text: str) -> str:
    """The expected `iss`: as written, but a bare domain or host gets the slash that Auth0 signs with."""
    if "://" not in text and not re.fullmatch(r"[A-Za-z0-9.-]+\.[A-Za-z0-9-]+/?", text):
        raise ValueError
    address = url(text if "://" in text else f"https://{text}")
    return address if urllib.parse.urlsplit(address).path else address + "/"


def exact_issuer(text: str) -> str:
    """A further issuer, whose URL stands as it is in `iss`: some have no slash at the end."""
    return url(text) if "://" in text else issuer_url(text)


def base_url(text: str) -> str:
    """An address to put paths after."""
    return url(text).rstrip("/")


def origin(text: str) -> str:
    """What a browser calls itself in the Origin header: scheme, host and port."""
    if not re.fullmatch(r"https?://(?!.*:(80|443)$)([a-z0-9.-]+|\[[0-9a-f:]+\])(:\d{1,5})?", url(text), re.ASCII):
        raise ValueError
    return text


def each_of(reader: Callable[[str], str]) -> Callable[[tuple[str, ...]], tuple[str, ...]]:
    """A reader for each of many texts, the blank ones left out."""
    return lambda texts: tuple(reader(text.strip()) for text in texts if text.strip())


def file_path(text: str) -> str:
    """The path of a file that is there."""
    if not os.path.isfile(text):
        raise ValueError(f"names no file: {text}")
    return text


ISSUER = "a domain such as tenant.eu.auth0.com, or an issuer's https:// URL"
IssuerUrl = Annotated[str, must_be(ISSUER, issuer_url)]
IssuerUrls = Annotated[tuple[str, ...], must_be(f"with commas between them, each {ISSUER}", each_of(exact_issuer))]
Claims = Annotated[tuple[str, ...], must_be("claims with commas between", each_of(str))]
Origins = Annotated[
    tuple[str, ...], must_be("origins such as https://app.exampleco.com, without a slash at the end", each_of(origin))
]
Url = Annotated[str, must_be("a plain https:// address", url)]
BaseUrl = Annotated[str, must_be("a plain https:// address", base_url)]
File = Annotated[str, must_be("the path of a file", file_path)]
LogFormat = Annotated[str, must_be("plain or json", str.lower, pattern="^(?i:plain|json)$")]


class Settings(Struct, frozen=True, kw_only=True, rename=str.upper):
    """All that the API is told from outside."""

    issuer: Annotated[IssuerUrl, about("the tenant's domain (Auth0 dashboard > Settings), or an issuer URL")] = field(
        name="AUTH0_DOMAIN"
    )
    audience: Annotated[str, about("the API's identifier (Auth0 dashboard > Applications > APIs)")] = field(
        name="AUTH0_AUDIENCE"
    )
    user_claim: Annotated[
        str, about("the claim that holds a person's e-mail; without it, programs only are served")
    ] = ""
    jwks_url: Annotated[Url, about("where the key set is, if not right below the issuer")] = ""
    extra_issuers: Annotated[IssuerUrls, about("further accepted `iss` values that share the keys")] = ()
    scope_claims: Annotated[Claims, about("claims that grant scopes too, with commas between")] = ()
    people_claim: Annotated[
        str, about("the claim of a token that lists whom it may upload for: names, or *@domain")
    ] = ""
    closed_until: Annotated[Day, about("the last day that is closed: nothing up to it can change")] = ""
    database_url: Annotated[str, about("the path of the SQLite file, or postgresql://...")] = "timesheets.db"
    host: Annotated[str, about("the address to listen on")] = "127.0.0.1"
    port: Annotated[int, whole(0, 65_535), about("the port to listen on; 0 takes a free one")] = 8080
    workers: Annotated[int, whole(1, 64), about("how many processes serve")] = 1
    tls_cert: Annotated[File, about("the certificate chain's file (PEM), to serve HTTPS itself")] = ""
    tls_key: Annotated[File, about("the file of that certificate's private key (PEM)")] = ""
    cors_origins: Annotated[Origins, about("browser origins that may call, with commas between")] = ()
    public_url: Annotated[BaseUrl, about("this API's own URL as its callers see it")] = ""
    app_client_id: Annotated[
        str, about("the client id of the Single Page Application by which people sign in at /app")
    ] = ""
    log_format: Annotated[LogFormat, about("how a request is logged: plain or json")] = "plain"

    def keys_url(self) -> str:
        """Where the issuer publishes its key set."""
        return self.jwks_url or self.issuer.rstrip("/") + "/.well-known/jwks.json"

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> "Settings":
        """Settings from a mapping such as `os.environ`. :raise Faults: a sentence for each fault"""
        known = {each.name: each for each in fields(cls)}
        given: dict[str, Any] = {name: env[name] for name in known if env.get(name, "").strip()}
        given |= {name: text.split(",") for name, text in given.items() if isinstance(known[name].default, tuple)}
        sentences = []
        if ("TLS_CERT" in given) != ("TLS_KEY" in given):
            sentences.append("TLS_CERT and TLS_KEY belong together. Only one of them is set.")
        try:
            settings = read(cls, given)
        except Faults as faults:
            sentences[:0] = [f"{each.field} {each.detail}. It is {known[each.field].about}." for each in faults.faults]
        if sentences:
            raise Faults(sentences)
        return settings


# ---- Problems: every error has one shape, RFC 9457 ----

# Whatever goes wrong is raised as a Problem where it is found, and answered in one place, `problem_json`.


class ProblemDetails(Struct, omit_defaults=True):
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

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        errors: Sequence[Fault] = (),
        challenge: str | None = None,
        reason: object = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(status, detail)
        self.code, self.detail, self.errors, self.reason = code, detail, list(errors), reason
        if challenge is not None:
            self.set_header("WWW-Authenticate", 'Bearer realm="timesheets"' + challenge)
        if retry_after is not None:
            self.set_header("Retry-After", retry_after)


BUSY = (503, "database_busy", "The database is busy; try again.")
AWAY = (503, "database_unavailable", "The database cannot be reached or written now; try again later.")
FULL = (507, "storage_full", "The database's disk is full, so nothing was stored; try again later.")
BOTTLES_OWN = {  # errors that Bottle raises itself, in our words
    400: ("bad_request", "This is not a request as HTTP has it."),
    404: ("not_found", "There is nothing at this address."),
    405: ("method_not_allowed", "This address does not take that method; the Allow header names those it takes."),
    500: ("internal_error", "Something went wrong in the API; its log says more."),
}


def problem_json(error: bottle.HTTPError) -> bytes:
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
    facts = (title, error.status_code, error.detail, error.code, request["request_id"], error.errors)
    response.content_type = "application/problem+json"
    return msgspec.json.encode(ProblemDetails("about:blank", *facts))


Handler = Callable[..., bytes | None]


def watch(handler: Handler) -> Handler:
    """Bottle plugin around every route: takes plain requests only; logs, and does not tell, what nobody foresaw.

    :raise 400: `bad_request`: there is no Host header, or more than one
    :raise 500: `internal_error`: our fault
    """

    @functools.wraps(handler)
    def watched(**arguments: Any) -> bytes | None:
        if "," in request.environ.get("HTTP_HOST", ","):  # two headers arrive as one with a comma
            raise Problem(400, *BOTTLES_OWN[400])
        if not request.environ["PATH_INFO"].isprintable():  # Bottle forgives a line break at the end
            raise Problem(404, *BOTTLES_OWN[404])
        if problem := request.environ.get("timesheets.problem"):  # the gateway's
            raise problem
        try:
            return handler(**arguments)
        except bottle.HTTPResponse:
            raise
        except Exception as fault:  # the one place that catches everything
            log.exception("request %s failed", request["request_id"])
            raise Problem(500, *BOTTLES_OWN[500]) from fault

    return watched


# ---- Input: bodies and queries ----

MAX_BODY, MAX_ROWS = 8 * 1024 * 1024, 10_000
BODY_DEADLINE = 30  # seconds for a whole body


class OwnEntry(Struct, kw_only=True, forbid_unknown_fields=True):
    """Hours that a person types."""

    date: WorkedDay
    project: Project
    hours: Hours
    description: Description = ""


class UploadedEntry(OwnEntry, kw_only=True, forbid_unknown_fields=True):
    """Hours that a program brings in; the `external_id` is the tracker's own key, by which it is known again."""

    user_id: Person
    external_id: Maybe[Text] = UNSET


class VoidedEntry(Struct, kw_only=True, forbid_unknown_fields=True):
    """An uploaded entry that is gone from the tracker."""

    external_id: Text
    deleted: Annotated[bool, must_be("true, or left out", is_true)]


class NoQuery(Struct):
    """No parameters."""


class Period(Struct, kw_only=True):
    """Days from one to another."""

    first: Maybe[Annotated[Day, about("the first day")]] = field(name="from", default=UNSET)
    last: Maybe[Annotated[Day, about("the last day, which counts too")]] = field(name="to", default=UNSET)


class Page(Period, kw_only=True):
    """A part of a list."""

    limit: Annotated[int, whole(1, 10_000), about("how many entries at most; the Link header leads to the rest")] = 100
    after: Maybe[Annotated[PageStart, about("where a page begins, from the Link header of the page before")]] = UNSET


class WaitingPage(Page, kw_only=True):
    """A part of what waits for approval."""

    project: OneProject = UNSET
    user_id: OnePerson = UNSET


class EntryPage(WaitingPage, kw_only=True):
    """A part of a list, approved or not."""

    approved: OneState = UNSET


class Report(Period, kw_only=True):
    """What a report adds up."""

    project: OneProject = UNSET
    user_id: OnePerson = UNSET
    approved: OneState = UNSET
    by: Maybe[Annotated[Grouping, about("what to add up by; user,project if not said, user with `over`")]] = UNSET
    over: Maybe[Annotated[SomeHours, about("only sums of more hours than this")]] = UNSET


class Refusal(Struct, kw_only=True):
    """Why an entry is refused."""

    note: Annotated[Reason, about("what its person is told")] = ""
    version: Maybe[Annotated[int, whole(1, 2**31 - 1), about("the version that was seen; another stays as it is")]] = (
        UNSET
    )


class Rehearsal(Struct, kw_only=True):
    """Whether it is in earnest."""

    dry_run: Annotated[bool, must_be(FLAG), about("say what would happen, and store nothing")] = False


class Once(Struct, kw_only=True):
    """A header that makes a request safe to repeat."""

    key: Maybe[
        Annotated[str, KEY_OF_REQUEST, about("any text of yours; sent again, it gets the first answer again")]
    ] = field(name="Idempotency-Key", default=UNSET)


@functools.lru_cache(maxsize=1024)  # programs ask the same again and again
def read_query(struct: type[Input], text: str) -> tuple[Input, str]:
    """The query's parameters, as a Struct, and as a query to which a Link adds where the next page begins.

    :raise 400: `invalid_query`: the query is malformed; `errors` names every parameter at fault
    """
    try:
        pairs = urllib.parse.parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=50)
    except ValueError as fault:
        raise Problem(400, "invalid_query", "The query is not UTF-8, or has too many parameters.") from fault
    given = dict(pairs)
    try:
        if len(given) < len(pairs):
            names = [name for name, _ in pairs]
            raise Faults([Fault(sayable(name), "stands twice") for name in given if names.count(name) > 1])
        asked = urllib.parse.urlencode([(name, value) for name, value in pairs if name != "after"] + [("after", "")])
        return read(struct, given), asked
    except Faults as faults:
        known = ", ".join(each.name for each in fields(struct)) or "none"
        detail = f"The query has faults; errors names them. The parameters here are: {known}."
        raise Problem(400, "invalid_query", detail, faults.faults) from faults


def read_body(optional: bool = False) -> bytes:
    """The request's body; an empty object for none where it is optional.

    :raise 400: `malformed_json`: the body is no JSON, or ends early; `detail` says where
    :raise 408: `body_timeout`: the body did not arrive in time
    :raise 413: `too_large` or `too_many_rows`: the body is over a limit, which `detail` names
    :raise 415: `unsupported_media_type`: the body is not labelled as JSON
    """
    stated = request.content_length  # -1: none, as in a chunked body, which one byte more than the limit gives away
    length = stated if stated >= 0 else MAX_BODY + 1 if request.environ.get("wsgi.input_terminated") else 0
    body: bytes = b"" if stated > MAX_BODY else request["wsgi.input"].read(length)
    if optional and not body and stated <= 0:
        return b"{}"
    media, _, parameters = request.environ.get("CONTENT_TYPE", "").lower().partition(";")
    if media.strip() != "application/json" or ("charset" in parameters and "utf-8" not in parameters):
        raise Problem(415, "unsupported_media_type", "The body must be JSON in UTF-8: Content-Type: application/json")
    if max(stated, len(body)) > MAX_BODY:
        limit = f"{MAX_BODY // 1024**2} MiB"
        raise Problem(413, "too_large", f"The body is over the limit of {limit}; send fewer rows at once.")
    if len(body) < stated:
        raise Problem(400, "malformed_json", "The body ended before the length that Content-Length states.")
    return body


ONE_BY_ONE = threading.Lock()  # 8 MiB of nonsense take 200 as Python's objects: those of one request, not of each


def read_json(body: bytes) -> Any:
    """The body's JSON value, NaN and Infinity included, which are no good value of any field."""
    try:
        return json.loads(body.decode())
    except json.JSONDecodeError as fault:
        where = f"{fault.msg} at line {fault.lineno}, column {fault.colno}"
        raise Problem(400, "malformed_json", f"The body is not JSON: {where}.") from fault
    except (ValueError, RecursionError) as fault:
        raise Problem(400, "malformed_json", "The body is not UTF-8, or no JSON that an entry could be.") from fault


# ---- Tokens: the issuer's keys, one table of checks, verify, requires ----

# A token is judged by its key, once; by the clock and by the key set, at every request. Nobody waits for the issuer:
# a thread fetches its keys, and who cannot be judged meanwhile is told to come back.

LEEWAY = 60  # seconds by which the issuer's clock and ours may differ
FRESH, USABLE = 600, 86_400  # seconds until a key set is fetched anew, and for how long it is used if that fails
PAUSE, DEADLINE = 30, 5  # seconds between two fetches, so that made-up key ids cannot cause a flood; and for one
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
ACCESS_TOKEN = ("at+jwt", "application/at+jwt")  # DPoP proofs and logout tokens are neither these nor plain JWTs
BROKEN_KEY = (jwt.PyJWTError, UnsupportedAlgorithm, ValueError, TypeError, LookupError, AttributeError)
BEARER = re.compile(r"bearer +([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE)  # RFC 6750 section 2.1
COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")  # RFC 7515 section 7.1, never padded
NO_ANSWER = (OSError, ValueError, RecursionError, http.client.HTTPException)


class InvalidToken(Problem):
    """A token that is refused: 401. The reason goes to the log; the caller learns less."""

    def __init__(self, reason: str) -> None:
        detail = "The access token is malformed, expired or not meant for this API; get a new one."
        super().__init__(401, "invalid_token", detail, challenge=', error="invalid_token"', reason=reason)


def fetch(address: str) -> dict[str, Any]:
    """A JSON object that the issuer publishes. :raise OSError, ValueError, HTTPException: it cannot be had"""
    opener, body, end = urllib.request.OpenerDirector(), b"", time.monotonic() + DEADLINE
    for handler in (urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
        opener.add_handler(handler())  # none for redirects: keys come from the issuer and nobody else
    with opener.open(address, timeout=DEADLINE) as answer:
        while chunk := answer.read1(65_536):
            body += chunk
            if len(body) > 256 * 1024 or time.monotonic() > end:
                raise ValueError("the answer is too long or too slow")
        if answer.status != 200:
            raise ValueError(f"the issuer answered {answer.status}")
    document = json.loads(body)
    if not isinstance(document, dict):
        raise ValueError("the answer is no JSON object")
    return document


def usable_keys(members: object) -> dict[str, jwt.PyJWK]:
    """The members of a JWKS that may verify tokens (RFC 7517 section 4), by key id. :raise ValueError: there are none

    Left out: symmetric, encryption and malformed keys, keys without an id, RSA below 2048 bits. A key that names no
    algorithm gets the first of its type (RS256 for RSA); a token's header never chooses.
    """
    keys: dict[str, jwt.PyJWK] = {}
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


class Issuer:
    """What the issuer publishes: its key set, and its own description. Kept, refreshed, and in an outage kept on with.

    A thread fetches, one at a time. One that the issuer keeps waiting is given up after DEADLINE.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings, self.clock = settings, clock
        self.keys: dict[str, jwt.PyJWK] = {}
        self.description: dict[str, Any] = {}  # its discovery document, for OpenAPI and `explain`
        # When the last attempt began: of those that got keys, of all, of those that have ended.
        self.fetched = self.tried = self.settled = float("-inf")
        self.lock, self.thread = threading.Lock(), threading.Thread()

    def state(self) -> str:
        """`fresh`; `stale` when the issuer has not answered for a while and the last set is still used; else `none`."""
        age = self.clock() - self.fetched
        return "fresh" if age <= FRESH else "stale" if age <= USABLE else "none"

    def under_way(self) -> bool:
        """Whether an attempt is being made."""
        return self.settled < self.tried and self.clock() - self.tried <= DEADLINE

    def find(self, kid: str) -> jwt.PyJWK:
        """The key with this id.

        :raise 401: `invalid_token`: the issuer has no such key
        :raise 503: `keys_unavailable`: the issuer's keys cannot be had now; try again after Retry-After seconds
        """
        waiting = self.under_way()  # asked before the key is looked up, because the attempt may end in between
        key, state = self.keys.get(kid), self.state()
        if key is None or state != "fresh":
            waiting = self.refresh() or waiting
        if key is not None and state != "none":
            return key
        if state == "fresh" and not waiting and self.fetched == self.tried:
            raise InvalidToken(f"kid is {kid!a:.100}, expected one of {', '.join(self.keys)}")
        detail = "The issuer's signing keys cannot be fetched, so this token cannot be judged now; try again later."
        again = 1 if waiting else PAUSE
        raise Problem(503, "keys_unavailable", detail, reason=f"key {kid!a:.100}, key set {state}", retry_after=again)

    def refresh(self) -> bool:
        """Start an attempt, unless one was made a moment ago; -> whether it was started."""
        with self.lock:
            if self.under_way() or self.clock() - self.tried < (PAUSE if self.keys else DEADLINE):
                return False
            self.tried = self.clock()
            self.thread = threading.Thread(target=self.attempt, args=(self.tried,), daemon=True)
            self.thread.start()
        return True

    def attempt(self, began: float) -> None:
        """Fetch the key set, then what the issuer says of itself; a failure leaves the old in place."""
        address = self.settings.keys_url()
        try:
            keys = usable_keys(fetch(address).get("keys"))
            if began == self.tried:  # else it was given up
                self.fetched, self.keys = began, keys  # in this order: keys without an age are none to /health
        except NO_ANSWER as fault:
            log.warning("the key set at %s cannot be fetched: %s", address, fault)
        self.settled = max(self.settled, began)
        if not self.description:
            with contextlib.suppress(*NO_ANSWER):
                self.description = fetch(self.settings.issuer.rstrip("/") + "/.well-known/openid-configuration")
            known = self.settings.issuer, *self.settings.extra_issuers
            if self.description.get("issuer", self.settings.issuer) not in known:
                says = "the issuer calls itself %a, expected %a: no token of its will be accepted; see AUTH0_DOMAIN"
                log.warning(says, self.description["issuer"], self.settings.issuer)


class Check(NamedTuple):
    """One thing that is asked of a token."""

    name: str
    good: bool
    found: object
    expected: str


class Caller(NamedTuple):
    """Whom a token speaks for, what it permits, and when."""

    client: str
    person: str | None  # None for a program; empty for somebody whom the token does not name
    scopes: frozenset[str]
    people: frozenset[str] | None  # whom it may upload for; None: anybody
    times: tuple[float, float, float]  # exp, iat, nbf

    def name(self) -> str:
        """Who changes what this caller changes."""
        return self.person or self.client

    def sees(self) -> str | None:
        """Whose entries are open to the caller: one's own, or `*` for everybody's."""
        return self.person if self.scopes.isdisjoint(("approve:timesheets", "report:timesheets")) else "*"

    def may_upload_for(self, whom: str) -> bool:
        """Whether the caller may bring in hours of this person."""
        return self.people is None or not self.people.isdisjoint((whom, "*" + "".join(whom.partition("@")[1:])))


# Who calls, as Auth0 (azp, gty), RFC 9068 (client_id), Okta (cid), Entra ID (oid, idtyp) and Keycloak say it.
CLIENT_CLAIMS = ("azp", "client_id", "cid")
CALLER_CLAIMS = (*CLIENT_CLAIMS, "oid", "idtyp", "preferred_username")


def is_text(value: object) -> bool:
    """Whether a claim is text that fits in a line of the log."""
    return type(value) is str and not BAD_CHARACTER.search(value)


def words(value: object) -> list[str] | None:
    """A claim's words: a list of texts as it is, a text at its spaces. None: it is neither."""
    parts = value.split(" ") if type(value) is str else value
    return parts if type(parts) is list and all(type(part) is str for part in parts) else None


def is_time(claim: object) -> bool:
    """Whether a claim is a NumericDate (RFC 7519 section 2) that a clock can be set beside."""
    return isinstance(claim, (int, float)) and type(claim) is not bool and 0 <= claim < 2**53


def is_program(claims: Mapping[str, Any]) -> bool:
    """Whether a token speaks for a program, and not for a person."""
    subject, username = claims.get("sub"), claims.get("preferred_username")
    return (
        "client-credentials" in (words(claims.get("gty")) or [])
        or str(subject).endswith("@clients")
        or subject in [claims[name] for name in (*CLIENT_CLAIMS, "oid") if name in claims]
        or claims.get("idtyp", "user") not in ("", "user")
        or str(username).startswith("service-account-")
    )


def people_in(claim: object) -> frozenset[str]:
    """The people that a claim lists, with commas between or as a list. :raise ValueError, TypeError: it does not"""
    parts: Any = claim.split(",") if type(claim) is str else words(claim)
    return frozenset(person(part) for part in parts if part.strip())


def takes(reader: Callable[[Any], Any], claim: object) -> bool:
    """Whether a claim is what a reader takes."""
    try:
        reader(claim)
        return True
    except (ValueError, TypeError):
        return False


def checks(settings: Settings, header: Mapping[str, Any], claims: Mapping[str, Any]) -> Iterator[Check]:
    """What is asked of a token beside its signature and the clock, in the order of RFC 9068 section 4."""
    kind, issuers = str(header.get("typ", "JWT")).lower(), [settings.issuer, *settings.extra_issuers]
    yield Check("alg", header.get("alg") in ALGORITHMS, header.get("alg"), "an asymmetric algorithm, RS256 by default")
    yield Check("typ", kind in ("jwt", *ACCESS_TOKEN), header.get("typ"), "at+jwt or JWT, or nothing")
    yield Check("iss", claims.get("iss") in issuers, claims.get("iss"), " or ".join(issuers))
    audience = claims["aud"] if type(claims.get("aud")) is list else [claims.get("aud")]
    ours = settings.audience in audience and words(audience) is not None
    yield Check("aud", ours, claims.get("aud"), settings.audience)
    for name in ("exp", "iat"):
        yield Check(name, is_time(claims.get(name)), claims.get(name), "a time in seconds")
    yield Check("nbf", is_time(claims.get("nbf", 0)), claims.get("nbf"), "a time in seconds, or nothing")
    yield Check("sub", is_text(claims.get("sub")) and claims["sub"] != "", claims.get("sub"), "who it speaks for")
    for name in CALLER_CLAIMS:
        yield Check(name, is_text(claims.get(name, "")), claims.get(name), "text, or nothing")
    client = client_of(claims)
    yield Check("client", bool(client), client or None, f"one of {', '.join(CLIENT_CLAIMS)}: the program that calls")
    yield Check("gty", words(claims.get("gty", "")) is not None, claims.get("gty"), "text or a list, or nothing")
    yield Check("scope", type(claims.get("scope", "")) is str, claims.get("scope"), "words with spaces between")
    permissions = claims.get("permissions", [])
    listed = type(permissions) is list and words(permissions) is not None
    yield Check("permissions", listed, claims.get("permissions"), "a list of scopes, or nothing")
    for name in settings.scope_claims:
        yield Check(name, words(claims.get(name, [])) is not None, claims.get(name), "text or a list, or nothing")
    for name in ("nonce", "at_hash", "c_hash"):
        says = "nothing; only ID tokens have it, and this is no access token"
        yield Check(name, kind in ACCESS_TOKEN or name not in claims, claims.get(name), says)
    bearer = kind in ACCESS_TOKEN or claims.get("typ", "Bearer") == "Bearer"
    yield Check("typ claim", bearer, claims.get("typ"), "Bearer, or nothing; others are no access tokens")
    yield Check("cnf", "cnf" not in claims, claims.get("cnf"), "nothing; this API cannot check the proof of a key")
    yield Check("act", "act" not in claims, claims.get("act"), "nothing; this API would not name who acts")
    verified = is_program(claims) or claims.get("email_verified", True) is True
    yield Check("email_verified", verified, claims.get("email_verified"), "true, or nothing")
    if settings.user_claim:
        named = is_program(claims) or takes(person, claims.get(settings.user_claim, "nobody"))
        yield Check("USER_CLAIM", named, claims.get(settings.user_claim), "a person's name or address")
    listed = takes(people_in, claims.get(settings.people_claim, []))
    yield Check("PEOPLE_CLAIM", listed, claims.get(settings.people_claim), "people's names, or nothing")


@functools.lru_cache(maxsize=1024)  # of one token, once a second
def in_time(exp: Any, iat: Any, nbf: Any, now: int) -> list[Check]:
    """What is asked of a token's times, to the second."""
    begun = is_time(nbf) and nbf - LEEWAY <= now
    return [
        Check("exp", is_time(exp) and exp + LEEWAY > now, exp, "a time ahead of us; get a new token"),
        Check("iat", is_time(iat) and iat - LEEWAY <= now, iat, "a time behind us"),
        Check("nbf", begun, nbf, "a time behind us, or nothing"),
    ]


def insist(rows: Iterable[Check]) -> None:
    """:raise 401: `invalid_token`: the access token is not good for this API"""
    for name, good, found, expected in rows:
        if not good:
            raise InvalidToken(f"{name} is {found!a:.200}, expected {expected}")


def client_of(claims: Mapping[str, Any]) -> str:
    """The program that calls; empty when the token names none."""
    return next((claims[name] for name in CLIENT_CLAIMS if claims.get(name)), "")


def judge(settings: Settings, token: str, key: jwt.PyJWK) -> Caller:
    """What a token signed by `key` permits: a pure function, which never looks at the clock."""
    if not COMPACT.fullmatch(token):
        raise InvalidToken("it is no JWT: three parts of base64url, without padding")
    unchecked = ("aud", "iss", "exp", "iat", "nbf", "sub")  # by PyJWT, because `checks` says more
    options: Any = {"require": [], **{f"verify_{name}": False for name in unchecked}}
    try:
        decoded = jwt.decode_complete(token, key, [key.algorithm_name], options)
    except (jwt.PyJWTError, ValueError) as fault:
        raise InvalidToken(str(fault)) from fault
    claims = decoded["payload"]
    insist(checks(settings, decoded["header"], claims))
    granted = [words(claims.get(name, [])) or [] for name in ("scope", "permissions", *settings.scope_claims)]
    named = claims.get(settings.user_claim, "") if settings.user_claim else ""
    who = None if is_program(claims) else named and person(named)
    people = people_in(claims.get(settings.people_claim, [])) if settings.people_claim else None
    times = (claims["exp"], claims["iat"], claims.get("nbf", 0))
    return Caller(client_of(claims), who, frozenset().union(*granted), people, times)


@functools.lru_cache(maxsize=64)  # an issuer's tokens all begin with the same header
def key_id(header: str) -> str:
    """Which key a token's header names, to be looked up and not yet to be believed."""
    try:
        kid = json.loads(base64.urlsafe_b64decode(header + "=="))["kid"]
    except (ValueError, LookupError, TypeError, RecursionError) as fault:
        raise InvalidToken("its header cannot be read, or names no key") from fault
    if type(kid) is not str:
        raise InvalidToken("its key id is not text")
    return kid


def verify(token: str, app: "App") -> Caller:
    """The Caller that a token speaks for.

    Checks signature, algorithm, type, issuer, audience and times. Does not check scopes (`requires` does) nor whether
    the token was revoked before its time: a self-contained token cannot tell.
    """
    if len(token) > 16_384:
        raise InvalidToken("it is longer than any real token")
    caller = app.judge(token, app.issuer.find(key_id(token.partition(".")[0])))
    insist(in_time(*caller.times, int(app.clock())))
    return caller


@functools.lru_cache(maxsize=256)  # a program sends the same all day
def bearer_token(header: str | None) -> str:
    """The token in an Authorization header (RFC 6750 section 3.1).

    :raise 400: `invalid_request`: the Authorization header is malformed
    :raise 401: `token_required`: there is no access token
    """
    if match := BEARER.fullmatch(header or ""):
        return match[1]
    # Two headers arrive as one with a comma, characters outside ASCII as an empty one; both are malformed.
    if header is None or ("," not in header and header.lower().split()[:1] not in ([], ["bearer"])):
        raise Problem(401, "token_required", "This needs an access token: Authorization: Bearer TOKEN", challenge="")
    detail = "The Authorization header must stand once and hold the word Bearer, a space and the token."
    raise Problem(400, "invalid_request", detail, challenge=', error="invalid_request"')


FOR_PROGRAMS = {"batch:upload", "report:timesheets"}  # scopes that need no person


class Access(NamedTuple):
    """Who may use a route, what it takes, and whether it may run on the event loop: what `requires` is told."""

    scopes: tuple[str, ...]
    query: type[Struct]
    body: Any
    quick: bool

    def admit(self, environ: dict[str, Any], app: "App") -> Caller:
        """The caller, if the token permits this route.

        :raise 403: `insufficient_scope`, `person_required` or `people_closed`: the token does not permit this
        """
        environ["caller"] = caller = verify(bearer_token(environ.get("HTTP_AUTHORIZATION")), app)
        granted = caller.scopes.intersection(self.scopes)
        if not granted:  # one is named that helps this caller
            helping = [scope for scope in self.scopes if caller.person is not None or scope in FOR_PROGRAMS]
            raise insufficient_scope((*helping, *self.scopes)[0])
        if caller.person or granted & FOR_PROGRAMS:
            return caller
        if caller.person is None:
            raise Problem(403, "person_required", "This is a person's business, and the token speaks for a program.")
        if app.settings.user_claim:
            raise Problem(403, "person_required", "This is a person's business, and the token does not name a person.")
        raise Problem(403, "people_closed", "This API serves programs only, because USER_CLAIM does not name a claim.")


def requires(
    *scopes: str, query: type[Struct] = NoQuery, body: Any = None, quick: bool = False
) -> Callable[[Handler], Handler]:
    """Let a request pass only with an access token of our issuer, for our audience, that grants one of `scopes`.

    Stands *below* the route's decorator. The handler finds the Caller in `request["caller"]`, and the query's
    parameters in `request["query"]`. Only a route that names a `body` is sent one.
    """

    access = Access(scopes, query, body, quick)

    def guard(handler: Handler) -> Handler:
        @functools.wraps(handler)
        def guarded(**arguments: Any) -> bytes | None:
            access.admit(request.environ, request.app)
            request["query"], request["asked"] = read_query(query, request.query_string)
            return handler(**arguments)

        guarded.access = access  # type: ignore[attr-defined]  # for the gateway, OpenAPI and `explain`
        return guarded

    return guard


def access_of(route: bottle.Route) -> Access | None:
    """Who may use a route. None: anybody."""
    return getattr(route.callback, "access", None)


def insufficient_scope(scope: str) -> Problem:
    """The Problem of a token that permits too little."""
    challenge = f', error="insufficient_scope", scope="{scope}"'
    return Problem(403, "insufficient_scope", f"This needs a token with the scope {scope}.", challenge=challenge)


# ---- Storage: SQLite or PostgreSQL, where an answered upload survives a power cut ----

# Both engines take the same SQL. Writers queue: at a lock in this process, at SQLite's own between processes, and at
# a row in PostgreSQL. What is answered is on the disk.

PATIENCE = 5  # seconds that a writer waits for the others
# When the request at hand is given up: its caller has been told so, and nothing of it may be stored any more.
GIVEN_UP: contextvars.ContextVar[float] = contextvars.ContextVar("given_up", default=math.inf)
THREADS = 8  # per worker, for what writes; as many for what reads
CHECKPOINT = 10_000  # pages; in a large table the rows of one upload lie in hundreds of them: copy them back seldom


def respell(db: Any) -> None:
    """Bring the people who are stored to the one spelling of `person`."""
    for (old,) in db.execute("SELECT user_id FROM entry UNION SELECT user_id FROM replay").fetchall():
        seen = "".join(each for each in old if unicodedata.category(each) != "Cf" and not BLANK_FILLER.match(each))
        with contextlib.suppress(ValueError):
            if (new := person(seen)) != old:
                db.execute("UPDATE entry SET user_id = ? WHERE user_id = ?", (new, old))
                db.execute("DELETE FROM replay WHERE user_id = ?", (old,))


def carry_over(db: Any) -> None:
    """Number the versions in the history as they were written, and name the entries of first answers."""
    if db.execute("SELECT entry_id FROM history LIMIT 1").fetchone():
        db.execute(
            "INSERT INTO past SELECT entry_id, row_number() OVER (PARTITION BY entry_id ORDER BY rowid), user_id, date,"
            " project, seconds, description, approved, voided, '', changed_at, changed_by FROM history"
        )
    for user_id, key, answer in db.execute("SELECT user_id, key, answer FROM replay").fetchall():
        sql = "UPDATE replay SET entry_id = ? WHERE user_id = ? AND key = ?"
        db.execute(sql, (json.loads(answer)["id"], user_id, key))


# Versions of the schema, oldest first: statements, or a function. Rows are never deleted: an entry is voided.
SCHEMA: list[str | Callable[[Any], None]] = [
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
    """
    DROP INDEX entry_by_approval;
    CREATE INDEX entry_by_date ON entry (date, id) WHERE voided = 0;
    CREATE INDEX entry_waiting ON entry (date, id) WHERE voided = 0 AND approved = 0
    """,
    respell,
    """
    ALTER TABLE entry ADD COLUMN version INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE entry ADD COLUMN note TEXT NOT NULL DEFAULT '';    -- why an approver refused it
    DROP INDEX entry_waiting;
    CREATE INDEX entry_waiting ON entry (date, id) WHERE voided = 0 AND approved = 0 AND note = '';
    CREATE TABLE past (                   -- the versions that changes replaced: 1, 2, ... of each entry
        entry_id INTEGER NOT NULL REFERENCES entry (id), version INTEGER NOT NULL,
        user_id TEXT NOT NULL, date TEXT NOT NULL, project TEXT NOT NULL, seconds INTEGER NOT NULL,
        description TEXT NOT NULL, approved INTEGER NOT NULL, voided INTEGER NOT NULL, note TEXT NOT NULL,
        changed_at TEXT NOT NULL, changed_by TEXT NOT NULL,
        PRIMARY KEY (entry_id, version)
    ) STRICT;
    ALTER TABLE replay ADD COLUMN entry_id INTEGER NOT NULL DEFAULT 0   -- its first version is the first answer
    """,
    carry_over,
    """
    DROP TABLE history;
    ALTER TABLE past RENAME TO history;
    UPDATE entry SET version = 1 + (SELECT count(*) FROM history WHERE entry_id = entry.id)
        WHERE id IN (SELECT entry_id FROM history);
    ALTER TABLE replay DROP COLUMN answer
    """,
]


def run_step(db: Any, step: str | Callable[[Any], None]) -> None:
    """Bring the schema to the next version."""
    if callable(step):
        return step(db)
    for statement in re.sub(r"--.*", "", step).split(";"):
        db.execute(statement)
    return None


def in_a_line(fault: object) -> str:
    """What a database says of a fault, in one line and without the statement that it happened in."""
    return " ".join(str(fault).partition("\nLINE ")[0].split())


class Database:
    """A SQLite file. Its connections are lent out, one to a thread at a time, and kept for the next."""

    errors: Any = sqlite3
    begin = "BEGIN IMMEDIATE"
    snapshot = "BEGIN"  # what is read after it is of one moment
    for_update = ""  # a writer has the whole database
    quick = True  # a page of a list may be read on the event loop
    patience: float | None = None  # seconds after which a request is given up; what waits here gives up by itself
    passing = {  # result codes for trouble that is not the request's
        sqlite3.SQLITE_BUSY: BUSY,
        sqlite3.SQLITE_READONLY: AWAY,
        sqlite3.SQLITE_IOERR: AWAY,
        sqlite3.SQLITE_CANTOPEN: AWAY,
        sqlite3.SQLITE_FULL: FULL,
    }

    def __init__(self, url: str) -> None:
        self.url, self.idle, self.writing = url, collections.deque[Any](), threading.Semaphore()

    def open(self) -> sqlite3.Connection:
        """A new connection, whose every commit is on the disk before it is answered."""
        connection = sqlite3.connect(self.url, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        connection.executescript(
            "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA cache_size = -8000;"
            f" PRAGMA wal_autocheckpoint = {CHECKPOINT}"
        )
        return connection

    @contextlib.contextmanager
    def connection(self) -> Iterator[Any]:
        """Lend a connection.

        :raise 503: `database_busy` or `database_unavailable`: try again after Retry-After seconds
        """
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
    def transaction(self, keep: bool = True) -> Iterator[Any]:
        """Lend a connection in a write transaction: all of it is stored or nothing; nothing when `keep` is false.

        :raise 507: `storage_full`: the database's disk is full, and nothing was stored
        """
        left = min(GIVEN_UP.get() - time.monotonic(), PATIENCE)
        if left <= 0 or not self.writing.acquire(timeout=left):  # fairer than SQLite, which tries now and then
            raise Problem(*BUSY, reason="other writers", retry_after=5)
        try:
            with self.connection() as connection:
                connection.execute(self.begin.format(round(left * 1000)))
                yield connection
                if time.monotonic() > GIVEN_UP.get():  # the caller has been told that nothing was stored
                    raise Problem(*AWAY, reason="it took too long", retry_after=5)
                connection.execute("COMMIT" if keep else "ROLLBACK")
        finally:
            self.writing.release()

    def read(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        with self.connection() as connection:
            rows: list[tuple[Any, ...]] = connection.execute(sql, values).fetchall()
        return rows

    def queue_up(self, db: Any, name: str) -> None:
        """Wait until no other transaction writes for this client or person."""

    def new_ids(self, db: Any, count: int) -> Sequence[int]:
        """Ids for so many new entries. Nobody else can take the next ones while the write transaction is ours."""
        ((last,),) = db.execute("SELECT coalesce(max(id), 0) FROM entry")
        return range(last + 1, last + 1 + count)

    def prepare(self) -> None:
        """Make the file, readable by its user only, and let readers and a writer work side by side (WAL)."""
        folder = os.path.dirname(os.path.abspath(self.url))
        if not os.path.isdir(folder):
            raise Faults([f"DATABASE_URL is in a folder that is not there: {folder}. Make it, for the API's user."])
        with contextlib.suppress(OSError):  # SQLite says better what is wrong
            os.close(os.open(self.url, os.O_RDWR | os.O_CREAT, 0o600))
        with self.connection() as db:
            db.execute("PRAGMA journal_mode = WAL")

    def version(self, db: Any) -> int:
        """The schema's version, which nobody else changes while the write transaction is ours."""
        return int(db.execute("PRAGMA user_version").fetchone()[0])

    def set_version(self, db: Any, version: int) -> None:
        """Note that the schema is of this version now."""
        db.execute(f"PRAGMA user_version = {version}")

    def upgrade(self) -> int:
        """Run each version of the schema that the database does not have yet; -> what it had."""
        self.prepare()
        with self.transaction() as db:
            found = self.version(db)
            for version, step in list(enumerate(SCHEMA, start=1))[found:]:
                run_step(db, step)
                self.set_version(db, version)
        return found

    def migrate(self) -> int:
        """Bring the schema to this version; -> the version that it had, 0 for none.

        :raise Faults: it is no database of ours, or a newer program's
        :raise OSError: PostgreSQL cannot be reached, which may pass
        """
        give_up = time.monotonic() + 20
        while True:
            try:
                found = self.upgrade()
                break
            except (self.errors.Error, Problem) as fault:
                busy = isinstance(fault, Problem) and fault.code == BUSY[1]
                if not busy or time.monotonic() > give_up:
                    says = in_a_line(fault.__cause__ or fault)
                    raise Faults([f"DATABASE_URL is no database that can be used: {says}."]) from fault
                time.sleep(random.random() / 5)  # other processes start as well
        if found > len(SCHEMA):
            raise Faults([f"DATABASE_URL has schema {found}, from a newer program. This one knows {len(SCHEMA)}."])
        return found

    def close(self) -> None:
        """Close the connections that nobody has borrowed."""
        while self.idle:
            self.idle.pop().close()


def open_database(url: str) -> Database:
    """The database at a path or a postgresql:// address. :raise Faults: it cannot be one"""
    if url == ":memory:":
        raise Faults(["DATABASE_URL is :memory:, of which each connection would have its own. It must be a file."])
    if url.startswith(("postgresql://", "postgres://")):
        return Postgres(url)
    if "://" in url:
        raise Faults(["DATABASE_URL must be the path of the SQLite file, or postgresql://USER:PASSWORD@HOST/NAME."])
    return Database(url)


def utc_now() -> str:
    """The time of a change, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# ---- Answers: JSON, or CSV for spreadsheets ----


class Entry(Struct, gc=False):
    """Hours of one person on one day for one project. All keys are always there."""

    id: Annotated[int, whole(1, 10**18 - 1)]
    user_id: str
    date: Annotated[str, Meta(extra_json_schema={"format": "date"})]
    project: str
    hours: Annotated[float, must_be("a number of hours", gt=0, le=24)]
    description: str
    approved: Annotated[bool, must_be("true or false")]
    source: str  # the client that wrote it
    external_id: str | None  # the tracker's key, within the source
    note: str  # why an approver refused it
    version: Annotated[int, whole(1, 2**31 - 1)]
    changed_at: Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
    changed_by: str  # the person, or the client; of an approved entry, who approved it


class Version(Entry, gc=False):
    """An entry as it was after one of its changes."""

    deleted: bool


class Result(Struct, omit_defaults=True, gc=False):
    """What became of one row of an upload; `id` when there is an entry, `code` and `errors` when it is rejected."""

    index: int
    external_id: str | None
    status: Literal["created", "updated", "unchanged", "deleted", "rejected"]
    id: int | None | UnsetType = UNSET
    code: str | UnsetType = UNSET
    errors: list[Fault] = []


class Results(Struct):
    """What became of an upload. The five counts add up to the rows sent."""

    created: int
    updated: int
    unchanged: int
    deleted: int
    rejected: int
    results: list[Result]


class Sum(Struct, kw_only=True):
    """Hours of a day, an ISO week or a month, by person, by project or by both."""

    date: str | UnsetType = UNSET
    week: str | UnsetType = UNSET
    month: str | UnsetType = UNSET
    user_id: str | UnsetType = UNSET
    project: str | UnsetType = UNSET
    hours: float


class KeySetHealth(Struct):
    """Whether the issuer's keys are `fresh`, `stale` or `none`, and the seconds since they were fetched."""

    state: Literal["fresh", "stale", "none"]
    age_seconds: int | None


class Health(Struct):
    """The state of the service, for load balancers."""

    status: Literal["ok"]
    keys: KeySetHealth


STATUSES = Results.__struct_fields__[:-1]
KEYS = Entry.__struct_fields__
COLUMNS = ", ".join(KEYS).replace("hours", "seconds")
KEPT = COLUMNS.replace("id, ", "", 1).replace("source, external_id", "voided")  # what each version has of its own
FIELDS: list[Any] = [(each.name, each.type) for each in msgspec.structs.fields(Entry)]
SEEN = [FIELDS[0], *((name, kind | UnsetType, UNSET) for name, kind in FIELDS[1:])]  # by an approver, in part or whole
Seen: Any = msgspec.defstruct("Seen", SEEN, kw_only=True, forbid_unknown_fields=True)
MAX_PAGE = 4 * 1024 * 1024  # bytes of a list in one answer


@functools.lru_cache(maxsize=4096)
def in_hours(seconds: int) -> float:
    """Seconds as the hours that are shown: rounded here, once, and never stored."""
    return round(seconds / 3600, 4)


def entry_of(row: tuple[Any, ...]) -> Entry:
    """A row of COLUMNS as an Entry."""
    # Named one by one, because slices of the row would take three times as long.
    entry_id, user_id, day, project, seconds, description, approved, source, key, note, version, at, by = row
    hours = in_hours(seconds)
    return Entry(entry_id, user_id, day, project, hours, description, approved == 1, source, key, note, version, at, by)


def answer(value: Any, status: int = 200) -> bytes:
    """Send JSON; with an entry that was created, where it is."""
    response.status, response.content_type = status, "application/json"
    if status == 201 and value.id is not None:
        response.set_header("Location", f"{request.app.settings.public_url}/timesheets/{value.id}")
    return msgspec.json.encode(value)


def wants_csv(accept: str) -> bool:
    """Whether a caller likes text/csv better than JSON (RFC 9110 section 12.5.1)."""
    likes: dict[str, float] = {}
    for part in accept.split(","):
        media, *parameters = (word.strip() for word in part.split(";"))
        quality = next((word[2:] for word in parameters if word.startswith("q=")), "1")
        likes[media] = float(quality) if re.fullmatch(r"[01](\.\d{0,3})?", quality, re.ASCII) else 0
    return 0 < likes.get("text/csv", 0) >= likes.get("application/json", 0)


def answer_list(items: Sequence[Any], columns: Sequence[str]) -> bytes:
    """Send a bare JSON array, or CSV (RFC 4180) to a caller who accepts text/csv."""
    response.set_header("Vary", "Accept")
    accept = request.environ.get("HTTP_ACCEPT", "").lower()
    if "text/csv" not in accept or not wants_csv(accept):
        return answer(items)
    sheet = io.StringIO()
    csv.writer(sheet).writerows([columns, *([cell(getattr(item, column)) for column in columns] for item in items)])
    response.content_type = "text/csv; charset=utf-8"
    return sheet.getvalue().encode()


FORMULA = re.compile(r"(^|;)(\s*[=+@\uff1d\uff0b\uff0d\uff20-])")  # at the start, also where `;` separates the cells


def cell(value: Any) -> Any:
    """A CSV cell that no spreadsheet takes for a formula."""
    if type(value) is bool:
        return str(value).lower()
    return FORMULA.sub(r"\1'\2", value) if type(value) is str else value


FILTERS = {
    "first": "date >= ?",
    "last": "date <= ?",
    "user_id": "user_id = ?",
    "project": "project = ?",
    "approved": "approved = ?",
}


def filters(owner: str = "*") -> dict[str, Any]:
    """What the query asks of entries, and whose they are to be: SQL tests with their values."""
    asked = {name: getattr(request["query"], name, UNSET) for name in FILTERS}
    asked["user_id"] = UNSET if owner == "*" else owner
    return {FILTERS[name]: value for name, value in asked.items() if value is not UNSET}


def whose(default: str) -> str:
    """The person whose entries are asked for, or `*` for everybody's.

    :raise 403: `insufficient_scope`: they are not the caller's own
    """
    caller, asked = request["caller"], request["query"].user_id
    wanted: str = default if asked is UNSET else asked
    if caller.sees() not in (wanted, "*"):
        raise insufficient_scope("report:timesheets")
    return wanted


def answer_entries(tests: dict[str, Any], *kind: str, newest_first: bool = False) -> bytes:
    """Send one page of the live entries that pass the tests, by date and id; a Link leads to the next (RFC 8288)."""
    query, size, rows = request["query"], request["query"].limit, list[tuple[Any, ...]]()
    beyond, order, start = ("<", " DESC", "9999-99-99.0") if newest_first else (">", "", "0000-00-00.0")
    day, _, entry_id = (start if query.after is UNSET else query.after).partition(".")
    sql = (
        f"SELECT {COLUMNS} FROM entry WHERE {' AND '.join(['voided = 0', *kind, *tests])}"
        f" AND (date, id) {beyond} (?, ?) ORDER BY date{order}, id{order} LIMIT ?"
    )
    # A large page is read in parts, so that long texts are not all in memory before the page turns out to be full.
    with request.app.db.connection() as db:
        if size > 1000:
            db.execute(request.app.db.snapshot)
        while len(rows) <= size and sum(len(row[5]) for row in rows) <= MAX_PAGE:
            part = min(size + 1 - len(rows), 1001)
            rows += (more := db.execute(sql, [*tests.values(), day, int(entry_id), part]).fetchall())
            if len(more) < part:
                break
            entry_id, _, day, *_ = rows[-1]
    while len(page := answer_list([entry_of(row) for row in rows[:size]], KEYS)) > MAX_PAGE:
        size = min(size, len(rows)) // 2
    if len(rows) > size:  # an absolute link only where PUBLIC_URL says how callers see us: the Host header may lie
        last_id, _, last_day, *_ = rows[size - 1]
        address = f"{request.app.settings.public_url}{request.path}?{request['asked']}{last_day}.{last_id}"
        response.set_header("Link", f'<{address}>; rel="next"')
    return page


# ---- Changes: what refuses them, and how they are stored ----

# Whatever changes an entry goes through `change`.

REFUSED = {  # code: the status where it is the whole request, and why
    "invalid": (422, "Nothing was stored; errors says why."),
    "approved": (409, "The entry is approved; it cannot change until its approval is taken back."),
    "closed": (409, "The entry's day is closed: nothing up to {} can change."),
    "not_your_person": (403, "The token does not list this person among those it may upload for."),
    "from_tracker": (409, "The entry comes from a tracker; delete it there, or it will come back."),
    "own_entry": (403, "Nobody approves their own hours; another approver can."),
    "changed": (409, "The entry is not what was seen; errors says what it is now."),
    "not_found": (404, "There is no such entry, or it is not yours."),
}


def refused(code: str, errors: Sequence[Fault] = ()) -> Problem:
    """The Problem of a request that is refused for a reason of the table."""
    return Problem(REFUSED[code][0], code, why_not(code), errors)


def why_not(code: str) -> str:
    """The sentence of the table, with the last day that is closed."""
    return REFUSED[code][1].format(request.app.settings.closed_until)


def settle(result: Result, verdict: str, errors: Sequence[Fault] = ()) -> None:
    """Note in a row's result what becomes of it: a status, or a code of the table above."""
    if verdict in STATUSES:
        result.status = verdict  # type: ignore[assignment]
    else:
        result.code, result.errors = verdict, list(errors) or [Fault("", why_not(verdict))]


def answer_results(results: Sequence[Result]) -> bytes:
    """Send what became of the rows of a batch, counted."""
    counts = collections.Counter[str](result.status for result in results)
    return answer(Results(**{status: counts[status] for status in STATUSES}, results=list(results)))


def find(db: Any, condition: str, values: Sequence[Any], locking: str = "") -> list[Entry]:
    """The live entries that meet the condition."""
    sql = f"SELECT {COLUMNS} FROM entry WHERE voided = 0 AND {condition}{locking}"
    return [entry_of(row) for row in db.execute(sql, values)]


def one_of(db: Any, entry_id: str, owner: str | None, locking: str = "") -> Entry:
    """The live entry with this id, if it is this person's; `*` takes anybody's. :raise 404: there is none"""
    found = find(db, "id = ?", [int(entry_id)], locking)
    if not found or owner not in (found[0].user_id, "*"):
        raise refused("not_found")
    return found[0]


def insist_open(day: str) -> None:
    """:raise 409: `closed`: the day is closed"""
    if day <= request.app.settings.closed_until:
        raise refused("closed")


Fields = tuple[Any, ...]


def fields_of(whom: str | None, entry: OwnEntry) -> Fields:
    """What is stored of a person's hours, in the order of the table."""
    return whom, entry.date, entry.project, round(entry.hours * 3600), entry.description


def insert(db: Any, rows: Sequence[tuple[Any, ...]]) -> Sequence[int]:
    """Store new rows (source, external_id, *fields) -> their ids."""
    if not rows:
        return []
    ids: Sequence[int] = request.app.db.new_ids(db, len(rows))
    now, who = utc_now(), request["caller"].name()
    db.executemany(
        "INSERT INTO entry (id, source, external_id, user_id, date, project, seconds, description, changed_at,"
        " changed_by) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [(entry_id, *row, now, who) for entry_id, row in zip(ids, rows, strict=True)],
    )
    return ids


def one_in(values: Sequence[Any]) -> str:
    """The SQL for being one of so many values; there may be none."""
    return f"IN ({', '.join('?' * len(values)) or 'NULL'})"


def change(db: Any, ids: Sequence[int], approved: int = 0, voided: int = 0, note: str = "") -> None:
    """Make the next version of entries, in the caller's name, and keep the one before."""
    db.execute(f"INSERT INTO history (entry_id, {KEPT}) SELECT id, {KEPT} FROM entry WHERE id {one_in(ids)}", ids)
    db.execute(
        "UPDATE entry SET approved = ?, voided = ?, note = ?, version = version + 1, changed_at = ?, changed_by = ?"
        f" WHERE id {one_in(ids)}",
        [approved, voided, note, utc_now(), request["caller"].name(), *ids],
    )


# ---- Routes: uploads, for programs ----

# A route's docstring is what /openapi.json says of it: what it answers and raises, besides what its guard does.

api = bottle.Bottle()  # collects the routes; create_app() makes the application
api.uninstall(True)  # Bottle's own plugins: the handlers answer with bytes
api.install(watch)
ENTRY_ID = "<entry_id:re:[1-9][0-9]{0,17}>"


@api.post("/timesheets/upload")
@requires("batch:upload", query=Rehearsal, body="Upload")
def upload() -> bytes:
    """Upload one entry, or an array of up to 10,000. `external_id` identifies a row: sent again, it is updated.

    An array gets a result for each row, whatever becomes of the others. The answer leaves after the commit, and
    sending the same again changes nothing; only a row without an `external_id` is a new entry every time. With
    `dry_run=1` nothing is stored.

    :return 200: Uploaded
    :return 201: Uploaded
    :raise 403: `not_your_person`: a single entry is of a person whom PEOPLE_CLAIM does not list
    :raise 409: `approved` or `closed`: a single entry would change one that is approved, or a closed day
    :raise 422: `invalid`: a single entry is invalid
    """
    dry_run, (single, results, rows) = request["query"].dry_run, read_batch(read_body(), UploadedEntry, "external_id")
    if rows:  # else there is nothing to wait for other writers for
        with request.app.db.transaction(keep=not dry_run) as db:
            upsert(db, rows)
            found = find(db, "id = ?", [results[0].id or None]) if single else []
    for result in results:
        if dry_run and result.status == "created":
            result.id = None  # an id that another entry will get would mislead
    if not single:
        return answer_results(results)
    (result,) = results
    if result.code:
        raise refused(result.code, result.errors)
    if not found:  # it is void
        return answer(result)
    return answer(msgspec.structs.replace(found[0], id=result.id), 201 if result.status == "created" else 200)


Batch = tuple[bool, list[Result], list[tuple[Result, Any]]]
DECODERS: dict[Any, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(list[kind] | kind, strict=False)  # type: ignore[valid-type]
    for kind in (UploadedEntry, Seen)
}


def read_batch(body: bytes, kind: type[Struct], key: str) -> Batch:
    """Read rows -> (whether it is a single object, a result for each, the good ones with their results).

    Nearly every batch is without fault and is decoded whole; only others are looked at row by row.
    """
    try:
        sent = DECODERS[kind].decode(body)
        for row in sent if isinstance(sent, list) else [sent]:
            finish(row)
    except ValueError:
        with ONE_BY_ONE:
            return sort_rows(read_json(body), kind, key)
    return sort_rows(sent, kind, key)


def sort_rows(sent: Any, kind: type[Struct], key: str) -> Batch:
    """What is good of rows that may have faults, and what is wrong with the others."""
    rows = sent if isinstance(sent, list) else [sent]
    if len(rows) > MAX_ROWS:
        raise Problem(413, "too_many_rows", f"A request holds at most {MAX_ROWS:,} rows, this one {len(rows):,}.")
    results, good, first = [], [], dict[Any, int]()
    for index, row in enumerate(rows):
        result = Result(index, None, "rejected")
        results.append(result)
        try:
            void = kind is UploadedEntry and isinstance(row, dict) and "deleted" in row
            item = row if type(row) is kind else read(VoidedEntry if void else kind, row)
        except Faults as faults:
            settle(result, "invalid", faults.faults)
            if isinstance(row, dict) and type(row.get("external_id")) is str:
                result.external_id = sayable(row["external_id"])
            continue
        if (known_by := getattr(item, key)) is not UNSET:
            setattr(result, key, known_by)
        if known_by is not UNSET and first.setdefault(known_by, index) != index:
            detail = f"is in row {first[known_by]} of this request already; one of the two must be wrong"
            result.code, result.errors = "duplicate", [Fault(key, detail)]
        else:
            good.append((result, item))
    return rows is not sent, results, good


UNKNOWN = (None, 0, 1)  # an entry that is not there is like a void one without an id


def decide(caller: Caller, closed: str, old: tuple[Any, ...], fields: Fields | None) -> str:
    """What becomes of a row of an upload: its status, or why it is rejected. Days up to `closed` stay as they are.

    `old` is what is stored: (id, approved, voided, *fields).
    """
    stored = None if old[2] else old[3:]
    # A void entry is somebody's, too.
    if caller.people is not None and not all(caller.may_upload_for(each[0]) for each in (old[3:], fields) if each):
        return "not_your_person"
    if stored == fields:
        return "unchanged"
    if old[1]:
        return "approved"
    if closed and min(each[1] for each in (stored, fields) if each) <= closed:
        return "closed"
    if fields is None:
        return "deleted"
    return "created" if old[0] is None else "updated"


def upsert(db: Any, entries: list[tuple[Result, Any]]) -> None:
    """Bring the source's entries to what was sent and complete their results."""
    caller, closed = request["caller"], request.app.settings.closed_until
    request.app.db.queue_up(db, caller.client)
    keys = [result.external_id for result, _ in entries if result.external_id is not None]
    known, new, changes = known_entries(db, caller.client, keys), [], []
    for result, row in entries:
        fields = None if isinstance(row, VoidedEntry) else fields_of(row.user_id, row)
        old = known.get(result.external_id, UNKNOWN)
        settle(result, verdict := decide(caller, closed, old, fields))
        if verdict == "created":
            new.append((result, (caller.client, result.external_id, *(fields or ()))))
        elif verdict in ("updated", "deleted"):
            changes.append((*(fields or old[3:]), int(fields is None), old[0]))
        if old[0] is not None:
            result.id = old[0]
    change(db, [entry_id for *_, entry_id in changes])
    db.executemany(
        "UPDATE entry SET user_id = ?, date = ?, project = ?, seconds = ?, description = ?, voided = ? WHERE id = ?",
        changes,
    )
    for (result, _), entry_id in zip(new, insert(db, [row for _, row in new]), strict=True):
        result.id = entry_id


def known_entries(db: Any, source: str, keys: Sequence[str]) -> dict[str | None, tuple[Any, ...]]:
    """What the source has under these external ids, void ones too: {external_id: (id, approved, voided, *fields)}."""
    rows = db.execute(
        "SELECT external_id, id, approved, voided, user_id, date, project, seconds, description FROM entry"
        f" WHERE source = ? AND external_id {one_in(keys)}{request.app.db.for_update}",
        [source, *keys],
    )
    return {row[0]: row[1:] for row in rows}


@api.get("/timesheets/upload")
@requires("batch:upload", query=Page)
def uploaded() -> bytes:
    """What this client has uploaded under an `external_id`, so that a cron job can compare it with its tracker.

    :return 200: Entries
    """
    # Nothing is added to the source but a reason for the planner to keep to the index by date.
    return answer_entries(filters() | {"source || '' = ?": request["caller"].client}, "external_id IS NOT NULL")


# ---- Routes: own entries, for people ----


@api.post("/timesheets")
@requires("create:timesheets", body="OwnEntry")
def create() -> bytes:
    """Add an entry for the person whose token this is. With an Idempotency-Key, a repeat gets the first answer again.

    :return 201: Entry
    :raise 400: `invalid_key`: the Idempotency-Key is malformed
    :raise 409: `closed`: the day is closed
    :raise 422: `invalid` or `key_reused`: a field is at fault, or the Idempotency-Key came with another body before
    """
    body, key, caller = read_body(), idempotency_key(), request["caller"]
    entry = read_whole(OwnEntry, body)
    digest = hashlib.sha256(body).hexdigest()
    with request.app.db.transaction() as db:
        request.app.db.queue_up(db, caller.person)
        sql = "SELECT body_sha256, entry_id FROM replay WHERE user_id = ? AND key = ?"
        sha256, entry_id = db.execute(sql, (caller.person, key)).fetchone() or (digest, None)
        if sha256 != digest:
            raise Problem(422, "key_reused", "This Idempotency-Key came with another body before; use a new key.")
        if entry_id is None:
            insist_open(entry.date)
            (entry_id,) = insert(db, [(caller.client, None, *fields_of(caller.person, entry))])
            if key is not None:
                db.execute("INSERT INTO replay VALUES (?, ?, ?, ?)", (caller.person, key, digest, entry_id))
        (first, _), *_ = versions(db, entry_id)
    return answer(first, 201)


def read_whole(struct: type[Input], body: bytes, **known: Any) -> Input:
    """A body that is one object, as a Struct; what is known already need not stand in it."""
    with ONE_BY_ONE:
        sent = read_json(body)
        try:
            return read(struct, known | sent if isinstance(sent, dict) else sent)
        except Faults as faults:
            sent = None  # an exception keeps what its frames hold
            raise refused("invalid", faults.faults) from faults.with_traceback(None)


VERSIONS = (
    f"SELECT {COLUMNS}, voided FROM entry WHERE id = ? UNION ALL SELECT {COLUMNS}, voided FROM history"
    " JOIN (SELECT id, source, external_id FROM entry) AS written ON id = entry_id WHERE entry_id = ? ORDER BY version"
)


def versions(db: Any, entry_id: int) -> list[tuple[Entry, bool]]:
    """What an entry has said, the first version first, and whether it was void then."""
    rows = db.execute(VERSIONS, [entry_id, entry_id])
    return [(entry_of(row[:-1]), row[-1] == 1) for row in rows]


def idempotency_key() -> str | None:
    """The Idempotency-Key header, None without one."""
    given = request.environ.get("HTTP_IDEMPOTENCY_KEY")
    try:
        key = read(Once, {} if given is None else {"Idempotency-Key": given}).key
        return None if key is UNSET else str(key)
    except Faults as faults:
        detail = f"The header Idempotency-Key {faults.faults[0].detail}."
        raise Problem(400, "invalid_key", detail) from faults


@api.get("/timesheets")
@requires("read:timesheets", "report:timesheets", query=EntryPage, quick=True)
def timesheets() -> bytes:
    """One's own entries, newest first. Another's (`user_id=`) and everybody's (`user_id=*`) take a scope more.

    That is approve:timesheets or report:timesheets.

    :return 200: Entries
    """
    return answer_entries(filters(whose(default=request["caller"].person or "*")), newest_first=True)


@api.get(f"/timesheets/{ENTRY_ID}")
@requires("read:timesheets", "report:timesheets", quick=True)
def timesheet(entry_id: str) -> bytes:
    """One entry: one's own, or anybody's with approve:timesheets or report:timesheets.

    :return 200: Entry
    :raise 404: `not_found`: there is none, or it is another's
    """
    with request.app.db.connection() as db:
        return answer(one_of(db, entry_id, request["caller"].sees()))


@api.get(f"/timesheets/{ENTRY_ID}/history")
@requires("read:timesheets", "report:timesheets")
def history(entry_id: str) -> bytes:
    """Every version of an entry, the first one first, also when it is deleted: what it said, who made it so and when.

    :return 200: Versions
    :raise 404: `not_found`: there is none, or it is another's
    """
    with request.app.db.connection() as db:
        found = versions(db, int(entry_id))
    if not found or request["caller"].sees() not in (found[-1][0].user_id, "*"):
        raise refused("not_found")
    return answer([Version(**msgspec.structs.asdict(entry), deleted=void) for entry, void in found])


@api.delete(f"/timesheets/{ENTRY_ID}")
@requires("delete:timesheets")
def delete(entry_id: str) -> None:
    """Delete one's own entry, if it was typed by hand.

    :return 204:
    :raise 404: `not_found`: there is none, or it is another's
    :raise 409: `approved`, `from_tracker` or `closed`: it is approved, a job has uploaded it, or its day is closed
    """
    with request.app.db.transaction() as db:
        entry = one_of(db, entry_id, request["caller"].person, request.app.db.for_update)
        if entry.approved:
            raise refused("approved")
        if entry.external_id is not None:
            raise refused("from_tracker")
        insist_open(entry.date)
        change(db, [entry.id], voided=1)
    response.status = 204


# ---- Routes: approvals, for managers ----


@api.get("/approvals")
@requires("approve:timesheets", query=WaitingPage, quick=True)
def approvals() -> bytes:
    """The entries that wait for approval, oldest first, uploaded ones included. Refused ones wait for a change.

    :return 200: Entries
    """
    return answer_entries(filters(whose(default="*")), "approved = 0 AND note = ''")


BY_APPROVAL = ("approved", "note", "changed_at", "changed_by")  # what an approval sets, besides the version


def differences(entry: Entry, seen: Any) -> list[Fault]:
    """What an approver saw otherwise. A repeated approval may say what stood there before the first."""
    allowed = {"version": entry.version - 1} if entry.approved else {}
    names = [name for name in KEYS if not (entry.approved and name in BY_APPROVAL)]
    pairs = [(name, getattr(seen, name), getattr(entry, name)) for name in names]
    return [
        Fault(name, sayable(f"is {msgspec.json.encode(now).decode()} now"))
        for name, saw, now in pairs
        if saw is not UNSET and saw != now and saw != allowed.get(name, UNSET)
    ]


def approve_seen(db: Any, rows: list[tuple[Result, Any]]) -> None:
    """Approve the entries that are as they were seen, and complete the results."""
    closed, wanted, good = request.app.settings.closed_until, [result.id for result, _ in rows], []
    entries = find(db, f"id {one_in(wanted)}", wanted, request.app.db.for_update)
    found: dict[Any, Entry] = {entry.id: entry for entry in entries}
    for result, seen in rows:
        entry = found.get(result.id)
        if entry is None:
            settle(result, "not_found")
            continue
        result.external_id = entry.external_id
        if entry.user_id == request["caller"].person:
            settle(result, "own_entry")
        elif faults := differences(entry, seen):
            settle(result, "changed", faults)
        elif entry.approved:
            settle(result, "unchanged")
        elif entry.date <= closed:
            settle(result, "closed")
        else:
            settle(result, "updated")
            good.append(entry.id)
    change(db, good, approved=1)


@api.put("/approvals")
@requires("approve:timesheets", body="Approvals")
def approve_many() -> bytes:
    """Approve up to 10,000 entries, given as the list showed them. One that has changed since is rejected.

    `id` must be there; of the other fields, those that are there are compared.

    :return 200: Results
    :raise 422: `invalid`: the body is no array
    """
    single, results, rows = read_batch(read_body(), Seen, "id")
    if single:
        raise refused("invalid", [Fault("", "must be an array of entries")])
    if rows:
        with request.app.db.transaction() as db:
            approve_seen(db, rows)
    return answer_results(results)


@api.put(f"/approvals/{ENTRY_ID}")
@requires("approve:timesheets", body="Seen")
def approve(entry_id: str) -> bytes:
    """Approve an entry, once or again. Fields in the body are compared with the entry; `version` alone is enough.

    :return 200: Entry
    :raise 403: `own_entry`: it is one's own
    :raise 404: `not_found`: there is none
    :raise 409: `changed` or `closed`: it is not what the body says, and `errors` names what differs; its day is closed
    :raise 422: `invalid`: a field of the body is at fault
    """
    result = Result(0, None, "rejected", int(entry_id))
    seen = read_whole(Seen, read_body(optional=True), id=result.id)
    with request.app.db.transaction() as db:
        approve_seen(db, [(result, seen)])
        if result.code:
            raise refused(result.code, result.errors)
        return answer(one_of(db, entry_id, "*"))


@api.delete(f"/approvals/{ENTRY_ID}")
@requires("approve:timesheets", query=Refusal)
def unapprove(entry_id: str) -> None:
    """Take an approval back, or refuse an entry that waits, with a note for its person. Once or again.

    The note goes away when the entry changes; until then the entry waits no more.

    :return 204:
    :raise 404: `not_found`: there is no such entry
    :raise 409: `changed` or `closed`: its version is another; its day is closed
    """
    note, seen = request["query"].note, request["query"].version
    with request.app.db.transaction() as db:
        entry = one_of(db, entry_id, "*", request.app.db.for_update)
        if entry.approved or note not in ("", entry.note):
            if seen not in (UNSET, entry.version):
                raise refused("changed", [Fault("version", f"is {entry.version} now")])
            insist_open(entry.date)
            change(db, [entry.id], note=note)
    response.status = 204


# ---- Routes: reports, and the state of the service ----

PERIODS: dict[str, tuple[str, Callable[[str], str]]] = {
    "daily": ("date", str),
    "weekly": ("week", lambda day: "{}-W{:02}".format(*date.fromisoformat(day).isocalendar())),
    "monthly": ("month", lambda day: day[:7]),
}


@api.get("/reports/daily", name="daily")
@api.get("/reports/weekly", name="weekly")
@api.get("/reports/monthly", name="monthly")
@requires("read:timesheets", "approve:timesheets", "report:timesheets", query=Report)
def report() -> bytes:
    """Sums of hours by day, ISO week or month; everybody's with approve:timesheets or report:timesheets.

    `approved=1` is what payroll pays. `over=12` on the daily report shows hours that may be there twice.

    :return 200: Sums
    """
    query = request["query"]
    by = ("user,project" if query.over is UNSET else "user") if query.by is UNSET else query.by
    columns = by.replace("user", "user_id").split(",")
    tests = filters(whose(default=request["caller"].sees()))
    rows = request.app.db.read(
        f"SELECT date, {', '.join(columns)}, SUM(seconds) FROM entry WHERE {' AND '.join(['voided = 0', *tests])}"
        f" GROUP BY date, {', '.join(columns)}",
        list(tests.values()),
    )
    period, period_of = PERIODS[request.route.name]
    totals: collections.Counter[tuple[str, ...]] = collections.Counter()
    for day, *group, seconds in rows:
        totals[period_of(day), *group] += seconds
    least = -1 if query.over is UNSET else round(query.over * 3600, 3)
    columns = [period, *columns, "hours"]
    lines = [(*group, in_hours(seconds)) for group, seconds in sorted(totals.items()) if seconds > least]
    return answer_list([Sum(**dict(zip(columns, line, strict=True))) for line in lines], columns)


@api.get("/health")
def health() -> bytes:
    """Whether the database answers, and how old the key set is. For load balancers.

    :return 200: Health
    :raise 503: `database_busy` or `database_unavailable`: the database does not answer
    """
    request.app.db.read("SELECT id FROM entry LIMIT 1")
    issuer = request.app.issuer
    if issuer.state() != "fresh":
        issuer.refresh()  # where nobody else calls, the next answer is right
    age = round(issuer.clock() - issuer.fetched) if issuer.keys else None
    return answer(Health("ok", KeySetHealth(issuer.state(), age)))


# ---- The application ----

FACTS = ("time", "level", "method", "path", "status", "ms", "caller", "reason", "request_id")
LINE = "%s %s %s %a %s %s ms %a %a %s"
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
ALWAYS_SENT = [("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")]
CORS_HEADERS = {
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Idempotency-Key, X-Request-ID",
    "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE",
    "Access-Control-Expose-Headers": "Link, Location, Retry-After, WWW-Authenticate, X-Request-ID",
    "Access-Control-Max-Age": "600",
}


class App(bottle.Bottle):
    """The routes above, with the settings, the database and the issuer that they use."""

    def __init__(self, settings: Settings, clock: Callable[[], float], issuer: Issuer) -> None:
        super().__init__()
        self.settings, self.clock, self.issuer = settings, clock, issuer
        self.db = open_database(settings.database_url)
        # The verdict on a token by a key never changes, so a token that comes again costs no RSA operation.
        self.judge = functools.lru_cache(maxsize=1024)(functools.partial(judge, settings))
        self.default_error_handler = problem_json
        self.merge(api)
        if settings.cors_origins:
            self.add_hook("after_request", cors_headers)

    def wsgi(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        """Answer one request, and log it in a line: what was asked, what became of it, who asked."""
        began, given = time.perf_counter(), environ.get("HTTP_X_REQUEST_ID", "")
        request_id = given if REQUEST_ID.fullmatch(given) else f"{random.getrandbits(64):016x}"
        environ["request_id"], environ["reason"] = request_id, ""

        def start(status: str, headers: list[tuple[str, str]], fault: Any = None) -> Any:
            return start_response(status, [*headers, *ALWAYS_SENT, ("X-Request-ID", request_id)], fault)

        answer = super().wsgi(environ, start)
        if log.isEnabledFor(logging.INFO):
            caller, ms = environ.get("caller"), round((time.perf_counter() - began) * 1000, 1)
            asker = caller and caller.name()
            asked = (environ["REQUEST_METHOD"], environ["PATH_INFO"], response.status_code, ms, asker)
            facts = (utc_now(), "INFO", *asked, environ["reason"], request_id)
            as_json = self.settings.log_format == "json"
            line = msgspec.json.encode(dict(zip(FACTS, facts, strict=True))).decode() if as_json else LINE % facts
            LOG.say(line)  # logging proper would take a tenth of the time of a request
        return answer


def cors_headers() -> None:
    """Let the browser origins that CORS_ORIGINS names read the answer, and nobody else's."""
    response.add_header("Vary", "Origin")
    origin = request.environ.get("HTTP_ORIGIN")
    if origin in request.app.settings.cors_origins:
        response.headers.update(CORS_HEADERS | {"Access-Control-Allow-Origin": origin})


def create_app(
    settings: Settings | None = None, clock: Callable[[], float] = time.time, issuer: Issuer | None = None
) -> App:
    """The WSGI application, by default with settings from the environment; any WSGI server can serve it.

    Opens the database and starts to fetch the key set, without waiting for it. :raise Faults: settings or database
    :raise OSError: PostgreSQL cannot be reached
    """
    settings = settings or Settings.from_env(os.environ)
    app = App(settings, clock, issuer or Issuer(settings))
    app.db.migrate()
    app.issuer.refresh()
    return app


# ==== Around it =======================================================================================================

# ---- Self-description: OpenAPI, read off the routes, the Structs and the docstrings above ----


def refer(name: str) -> dict[str, Any]:
    """A reference to a schema of the document."""
    return {"$ref": f"#/components/schemas/{name}"}


STRUCTS = [Entry, Version, Results, Sum, Health, ProblemDetails, OwnEntry, UploadedEntry, VoidedEntry, Seen]
_, SCHEMAS = msgspec.json.schema_components(STRUCTS, ref_template="#/components/schemas/{name}")
NO_ID_YET = SCHEMAS["Entry"]["properties"] | {"id": {"type": "null"}}
del SCHEMAS["Seen"]["required"]  # where the path names the entry
SCHEMAS |= {
    "Row": {"anyOf": [refer("UploadedEntry"), refer("VoidedEntry")]},
    "Upload": {"anyOf": [refer("Row"), {"type": "array", "items": refer("Row"), "maxItems": MAX_ROWS}]},
    "Uploaded": {"anyOf": [refer("Results"), refer("Entry"), refer("Result"), refer("Rehearsed")]},
    "Rehearsed": SCHEMAS["Entry"] | {"title": "Rehearsed", "properties": NO_ID_YET},  # would be created: dry_run=1
    "Entries": {"type": "array", "items": refer("Entry")},
    "Versions": {"type": "array", "items": refer("Version")},
    "Sums": {"type": "array", "items": refer("Sum")},
    "Approvals": {"type": "array", "items": refer("Seen") | {"required": ["id"]}, "maxItems": MAX_ROWS},
    "Anything": {"type": "object"},
}
JANE, TRACKED = "jane@contractor.example", {"date": "2026-11-20", "project": "StoreZero", "hours": 7.5}
ENTRY: dict[str, Any] = {"id": 14, "user_id": JANE} | TRACKED | {"description": "", "approved": False, "source": "Job"}
ENTRY |= {"external_id": "toggl:1", "note": "", "version": 1, "changed_at": "2026-11-20T16:00:00Z", "changed_by": "Job"}
FAULTY = [Fault("hours", "must be a number of hours such as 7.5")]
RESULTS = [
    Result(0, "toggl:1", "created", 14),
    Result(1, "toggl:2", "rejected", code="invalid", errors=FAULTY),
]
UPLOADED = msgspec.to_builtins(Results(1, 0, 0, 0, 1, RESULTS))
for name, example in {
    "Entry": ENTRY,
    "Entries": [ENTRY],
    "Versions": [ENTRY | {"deleted": False}],
    "OwnEntry": TRACKED,
    "Upload": [{"external_id": "toggl:1", "user_id": JANE} | TRACKED],
    "Uploaded": UPLOADED,
    "Results": UPLOADED,
    "Sums": [{"month": "2026-11", "user_id": JANE, "project": "StoreZero", "hours": 38.5}],
    "Approvals": [{"id": 14, "version": 1}],
    "Seen": {"version": 1},
    "Health": {"status": "ok", "keys": {"state": "fresh", "age_seconds": 42}},
}.items():
    SCHEMAS[name]["examples"] = [example]
MEDIA = {  # the media types of an answer, where they are not just application/json
    "Entries": ["application/json", "text/csv"],
    "Sums": ["application/json", "text/csv"],
    "ProblemDetails": ["application/problem+json"],
    "Page": ["text/html"],
    "": [],
}
HEADERS = {  # header, what it says, the statuses or the schema that have it
    "Link": ("the address of the next page, with rel=next; on the last page there is none", {"Entries"}),
    "Location": ("where the new entry is", {"201"}),
    "WWW-Authenticate": ("what is wrong with the token, or what it lacks (RFC 6750 section 3)", {"400", "401", "403"}),
    "Retry-After": ("seconds after which to try again", {"503", "507"}),
}


def operation(route: bottle.Route) -> dict[str, Any]:
    """One route as an OpenAPI operation: what its docstring and those of its guard say it answers and raises."""
    handler, access = route.callback, access_of(route)
    text, *_ = (documentation := inspect.getdoc(handler) or "").partition("\n\n:")
    described = {
        "operationId": route.name or handler.__name__,
        "summary": re.split(r"\.(?:\s|$)", text)[0],
        "description": text,
    }
    raising: list[Any] = [handler, watch]
    if access:
        described["security"] = [{"auth0": [scope]} for scope in access.scopes]
        raising += [bearer_token, insist, Issuer.find, Access.admit, read_query, Database.connection]
    if access and access.body:
        content = {"application/json": {"schema": refer(access.body)}}
        described["requestBody"] = {"required": access.body != "Seen", "content": content}
        raising.append(read_body)
    if route.method != "GET":
        raising.append(Database.transaction)
    answers = {
        status: response_of(status, http.client.responses[int(status)], what)
        for status, what in re.findall(r"^:return (\d+): ?(.*)$", documentation, re.MULTILINE)
    }
    for status, reasons in sorted(problems(raising).items()):
        answers[status] = response_of(status, ", or ".join(reasons), "ProblemDetails")
    return described | {"responses": answers, "parameters": parameters(route)}


def problems(raising: Sequence[Any]) -> dict[str, list[str]]:
    """What the docstrings of functions say that they raise: the reasons for each status."""
    found: dict[str, list[str]] = {}
    for function in raising:
        for status, reason in re.findall(r"^:raise (\d+): (`.*)$", inspect.getdoc(function) or "", re.MULTILINE):
            found.setdefault(status, []).append(reason)
    return found


def response_of(status: str, text: str, schema: str) -> dict[str, Any]:
    """A response as OpenAPI has it; what is no JSON is text to it."""
    names = [name for name, (_, having) in HEADERS.items() if having & {status, schema}]
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
    content = {
        media: {"schema": {"type": "string"} if media.startswith("text/") else refer(schema)}
        for media in MEDIA.get(schema, ["application/json"])
    }
    return {"description": text, "headers": headers, "content": content}


def parameters(route: bottle.Route) -> list[dict[str, Any]]:
    """The parameters of a route, in its path, query and headers."""
    access, found = access_of(route), []
    for place, struct in (("query", access.query if access else NoQuery), ("header", Once)):
        for each in fields(struct):
            if place == "query" or each.name in route.callback.__doc__:
                schema = msgspec.json.schema(struct)["$defs"][struct.__name__]["properties"][each.name]
                facts = {"name": each.name, "in": place, "required": False, "description": each.about}
                found.append(facts | {"schema": {name: schema[name] for name in schema if name != "description"}})
    if ENTRY_ID in route.rule:
        schema = {"type": "integer", "minimum": 1, "maximum": 10**18 - 1}
        facts = {"name": "entry_id", "in": "path", "required": True, "description": "the entry's `id`"}
        found.append(facts | {"schema": schema})
    return found


@api.get("/.well-known/oauth-protected-resource")
def resource_metadata() -> bytes:
    """Which issuer this API trusts, and its scopes, for clients that have only its address (RFC 9728).

    :return 200: Anything
    """
    settings = request.app.settings
    scopes = sorted({scope for route in request.app.routes if (access := access_of(route)) for scope in access.scopes})
    facts = {"resource": settings.audience, "authorization_servers": [settings.issuer], "scopes_supported": scopes}
    return answer(facts | {"bearer_methods_supported": ["header"], "resource_name": "Timesheets API"})


@api.get("/openapi.json")
def description() -> bytes:
    """This description of the API, in OpenAPI 3.1.

    :return 200: Anything
    """
    return answer(openapi(request.app))


def path_of(route: bottle.Route) -> str:
    """A route's path as OpenAPI writes it."""
    return str(route.rule.replace(ENTRY_ID, "{entry_id}"))


def openapi(app: App) -> dict[str, Any]:
    """The API's description (OpenAPI 3.1), read off its routes."""
    paths: dict[str, dict[str, Any]] = collections.defaultdict(dict)
    scopes: dict[str, list[str]] = collections.defaultdict(list)
    for route in app.routes:
        paths[path_of(route)][route.method.lower()] = operation(route)
        access = access_of(route)
        for scope in access.scopes if access else ():
            scopes[scope].append(f"{route.method} {path_of(route)}")
    issuer, says = app.settings.issuer.rstrip("/"), app.issuer.description  # which is empty until it has answered
    flow: dict[str, Any] = {"scopes": {scope: ", ".join(opens) for scope, opens in scopes.items()}}
    flow["tokenUrl"] = says.get("token_endpoint", issuer + "/oauth/token")
    signing_in = {"authorizationUrl": says.get("authorization_endpoint", issuer + "/authorize")}
    flows = {"clientCredentials": flow, "authorizationCode": flow | signing_in}
    headers = {name: {"description": what, "schema": {"type": "string"}} for name, (what, _) in HEADERS.items()}
    title, _, text = (__doc__ or "").partition("\n\n")[0].partition(": ")
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "description": text, "version": VERSION},
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
* { overflow-wrap: anywhere } h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.05rem; margin: 2.5rem 0 0 }
p, ul { margin: .4rem 0; padding: 0 } li { list-style: none } .dim { color: light-dark(#505a6e, #aab2c2) }
a, .key { color: light-dark(#0b5d46, #7fd8b8) } code, pre { font: .9rem/1.45 ui-monospace, monospace }
pre { margin: .6rem 0; padding: .6rem .8rem; white-space: pre-wrap; border-radius: .5rem }
pre { background: light-dark(#f0f0ec, #1f242d) } nav ul { columns: 17rem; margin: 1rem 0 }
"""
POLICY = "default-src 'none'; style-src {}; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
PAGE_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{info['title']}}</title>
<link rel="icon" href="data:,">
<style>{{!style}}</style>
</head>
<body>
<main>
<h1>{{info['title']}}</h1>
<p>{{info['description']}}</p>
<p class="dim">Tokens are signed by <span class="key">{{settings.issuer}}</span> for the audience
<span class="key">{{settings.audience}}</span>. The state of the issuer's key set: <span class="key">{{keys}}</span>.
People sign in at <a href="{{settings.public_url}}/app">the page for people</a>. All of this for programs, with every
field and error: <a href="{{settings.public_url}}/openapi.json">openapi.json</a>.
{{'' if settings.public_url else 'Below, $API stands for the address of this page.'}}</p>
<nav aria-label="Routes"><ul>
% for path, method, operation in routes:
<li><a href="#{{operation['operationId']}}">{{method}} {{path}}</a></li>
% end
</ul></nav>
% for path, method, operation in routes:
% scope = ' or '.join(each['auth0'][0] for each in operation.get('security', []))
<h2 id="{{operation['operationId']}}">{{method}} {{path}}</h2>
<p>{{!marked(operation['description'])}}</p>
<p class="dim">{{!'Needs the scope <span class="key">' + scope + '</span>.' if scope else 'Needs no token.'}}</p>
<ul>
% for each in operation['parameters']:
<li><code class="key">{{each['name']}}</code> {{!marked(each['description'])}}</li>
% end
</ul>
<pre>{{curl(settings.public_url, method, path, operation)}}</pre>
% if answer := next((sample(each['content']) for status, each in operation['responses'].items() if status < '3'), ''):
<pre>{{answer}}</pre>
% end
% end
</main>
</body>
</html>
"""


def marked(text: str) -> str:
    """Markdown's paragraphs and `code`, the only marks that descriptions use, as HTML."""
    return re.sub("`(.+?)`", r"<code>\1</code>", bottle.html_escape(text)).replace("\n\n", "</p><p>")


def sample(content: Mapping[str, Any]) -> str:
    """The example of a body or an answer, as JSON; nothing where there is none."""
    name = content.get("application/json", {"schema": {}})["schema"].get("$ref", "").rpartition("/")[2]
    return ", ".join(json.dumps(example) for example in SCHEMAS.get(name, {}).get("examples", []))


def curl(base: str, method: str, path: str, described: Mapping[str, Any]) -> str:
    """The command line that calls a route."""
    body = sample(described.get("requestBody", {"content": {}})["content"])
    named = method != ("POST" if body else "GET")  # what curl does of itself
    options = ' -H "Authorization: Bearer $TOKEN"' if "security" in described else ""
    options += f" -H 'Content-Type: application/json' -d '{body}'" if body else ""
    return f"curl{' -X ' + method if named else ''} {base or '$API'}{path.replace('{entry_id}', '14')}{options}"


def hash_of(text: str) -> str:
    """An inline style or script, as a Content-Security-Policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def send_page(text: str, style: str, more: str = "") -> str:
    """Send HTML, which may use the style with this hash, and what `more` of the policy permits."""
    response.set_header("Content-Security-Policy", POLICY.format(style) + more)
    response.content_type = "text/html; charset=utf-8"
    return text


@api.get("/")
def page() -> str:
    """What this API is, for people.

    :return 200: Page
    """
    app, document = request.app, openapi(request.app)
    paths = document["paths"].items()
    routes = [(path, method.upper(), each) for path, methods in paths for method, each in methods.items()]
    facts = {"settings": app.settings, "keys": app.issuer.state(), "routes": routes, "style": STYLE}
    text = bottle.template(PAGE_TEMPLATE, document, facts, marked=marked, sample=sample, curl=curl)
    return send_page(text, hash_of(STYLE))


APP_PAGE = pathlib.Path(__file__).with_name("app.html")
ORIGIN = re.compile(r"https?://[\w.:\[\]-]+", re.ASCII)


@api.get("/app")
def people() -> str:
    """The page by which people sign in, type their hours, approve and see reports.

    :return 200: Page
    :raise 404: `not_found`: there is no app.html beside timesheets.py
    """
    settings, says = request.app.settings, request.app.issuer.description
    try:
        text = APP_PAGE.read_text(encoding="utf-8")
    except OSError as fault:
        detail = "The page for people is a file of its own: put app.html beside timesheets.py."
        raise Problem(404, "not_found", detail, reason=fault) from fault
    style, script = (hash_of(text.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]) for tag in ("style", "script"))
    addresses = (settings.issuer, says.get("token_endpoint"))
    origins = sorted({match[0] for each in addresses if (match := ORIGIN.match(str(each)))})
    # Trusted Types: no text becomes HTML or a script, whatever the page's own script might do.
    policy = f"; script-src {script}; connect-src 'self' {' '.join(origins)}; require-trusted-types-for 'script'"
    facts = {"issuer": settings.issuer, "audience": settings.audience, "client_id": settings.app_client_id}
    facts["user_claim"] = settings.user_claim
    return send_page(text.replace("{}", json.dumps(facts).replace("<", "\\u003c"), 1), style, policy)


# ---- Serving: the log, the gateway from Granian to Bottle, the processes ----


class Log(logging.Handler):
    """Takes lines from every thread, never waits and never fails; a thread writes them to stderr.

    So a full disk or a reader that has left costs lines and nothing else.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lines: collections.deque[str] = collections.deque(maxlen=10_000)  # the oldest go first
        self.some, self.writing, self.thread, self.as_json = threading.Event(), False, threading.Thread(), False

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record of Python's own logging, a traceback included."""
        facts = {"time": utc_now(), "level": record.levelname, "message": self.format(record)}
        self.say(json.dumps(facts) if self.as_json else " ".join(facts.values()))

    def say(self, line: str) -> None:
        """Take a line."""
        self.lines.append(line)
        if not self.some.is_set():
            self.some.set()
            if not self.thread.is_alive():
                self.thread = threading.Thread(target=self.run, daemon=True)
                self.thread.start()

    write = say  # for Bottle, which takes it for a file

    def run(self) -> None:
        """Write what has come, again and again; what cannot be written is dropped."""
        while self.some.wait():
            time.sleep(0.05)  # so that many lines are one system call
            self.some.clear()
            self.writing = True
            text = "".join(self.lines.popleft() + "\n" for _ in range(len(self.lines)))
            with contextlib.suppress(OSError):
                os.write(2, text.encode(errors="backslashreplace"))
            self.writing = False

    def close(self) -> None:
        """Wait a second at most until all is written."""
        end = time.monotonic() + 1
        while (self.lines or self.writing) and time.monotonic() < end:
            time.sleep(0.01)
        super().close()


LOG = Log()


def log_to_stderr(settings: Settings) -> None:
    """Log plain lines, or JSON."""
    LOG.as_json = settings.log_format == "json"
    log.setLevel(logging.INFO)
    log.handlers = [LOG]


Answer = tuple[int, list[tuple[str, str]], bytes]
# What may be answered on the event loop: short pages. Other filters may look for what is rare.
QUICK_QUERY = re.compile(r"((limit=(\d{1,3}|1000)|(after|from|to|user_id)=[^&%]*)(&|$))*", re.ASCII)


class Gateway:
    """Serves the application from an event loop (RSGI, Granian's own interface), so that slow callers hold no thread.

    A request runs once. Its body is awaited only if its caller is let in: whoever is refused sends it in vain.
    """

    def __init__(self, app: App) -> None:
        self.app = app
        # Writers queue for each other; readers must not have to queue behind them.
        self.readers, self.writers = (concurrent.futures.ThreadPoolExecutor(THREADS) for _ in "rw")

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        """Answer one request."""
        environ, access = wsgi_environ(scope), None
        with contextlib.suppress(bottle.HTTPError):
            access = access_of(self.app.match(environ)[0])
        if access and access.body:
            with contextlib.suppress(Problem):  # the application finds so again, and says why
                access.admit(environ, self.app)
                await self.take_body(environ, protocol)
        if self.is_quick(environ, access):
            answer = call(self.app, environ)
        else:
            answer = await self.in_a_thread(scope, environ)
        protocol.response_bytes(*answer)

    def __rsgi_del__(self, loop: asyncio.AbstractEventLoop) -> None:
        """The last thing that a worker does."""
        self.app.db.close()
        LOG.close()

    async def take_body(self, environ: dict[str, Any], protocol: Any) -> None:
        """Await a request's body, cut off where it is too long for any route."""
        body = io.BytesIO()
        try:
            async with asyncio.timeout(BODY_DEADLINE):
                async for chunk in protocol:
                    body.write(chunk)
                    if body.tell() > MAX_BODY:
                        break
        except TimeoutError:
            late = f"The body did not arrive within {BODY_DEADLINE} s; nothing was stored."
            environ["timesheets.problem"] = Problem(408, "body_timeout", late)
        body.seek(0)
        environ["wsgi.input"] = body

    def is_quick(self, environ: dict[str, Any], access: Access | None) -> bool:
        """Whether a request may run on the event loop: it is a short read in SQLite, or reads nothing."""
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return access is None
        quick = access is None or (access.quick and QUICK_QUERY.fullmatch(environ["QUERY_STRING"]))
        return self.app.db.quick and bool(quick)

    async def in_a_thread(self, scope: Any, environ: dict[str, Any]) -> Answer:
        """The answer to a request that may wait; a database that does not answer in time is away."""
        threads = self.readers if scope.method in ("GET", "HEAD") else self.writers
        try:
            async with asyncio.timeout(self.app.db.patience) as limit:
                GIVEN_UP.set(limit.when() or math.inf)
                run = functools.partial(contextvars.copy_context().run, call, self.app, environ)
                return await asyncio.get_running_loop().run_in_executor(threads, run)
        except TimeoutError:
            problem = Problem(*AWAY, reason="it does not answer in time", retry_after=5)
            return call(self.app, wsgi_environ(scope) | {"timesheets.problem": problem})


@functools.lru_cache(maxsize=256)
def wsgi_name(header: str) -> str:
    """The WSGI variable for a header. One with an underscore keeps its case, or it would pass for one with dashes."""
    name = header if "_" in header else header.upper().replace("-", "_")
    return name if name in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_" + name


def wsgi_environ(scope: Any) -> dict[str, Any]:
    """A WSGI environment (PEP 3333) for an RSGI scope. A header that comes twice is joined by a comma."""
    path = scope.path.encode().decode("latin-1")
    environ = {"REQUEST_METHOD": scope.method, "PATH_INFO": path, "QUERY_STRING": scope.query_string}
    environ |= {"SERVER_NAME": "", "SERVER_PORT": "", "wsgi.url_scheme": scope.scheme, "wsgi.errors": LOG}
    for header in scope.headers.keys():  # noqa: SIM118 (it is no dict)
        # Granian holds back a value outside ASCII: better an empty one than none, which means no such header. Beside
        # a second value it cannot be seen at all.
        environ[wsgi_name(header)] = ",".join(scope.headers.get_all(header))
    environ["wsgi.input_terminated"] = True
    environ["wsgi.input"] = io.BytesIO()
    return environ


def call(app: App, environ: dict[str, Any]) -> Answer:
    """Run one request -> (status, headers, body)."""
    start: list[Any] = []
    parts = app(environ, lambda status, headers, fault=None: start.extend((status, headers)))
    return int(start[0][:3]), [(name.lower(), value) for name, value in start[1]], b"".join(parts)


STOP = 10  # seconds in which requests in flight finish; a caller that does not read its answer has as long


def end_with(parent: int) -> None:
    """End this process when its parent does: a worker that is left behind would hold the port."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def worker(settings: Settings) -> Gateway:
    """What each worker process serves; the key set is here, if the issuer gives it in time."""
    # Ctrl-C reaches every process at once, and the first one then ends the workers; a worker that gets both signals
    # may lock up (seen with Granian 2.8), so it does not listen to Ctrl-C.
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    log_to_stderr(settings)
    app = create_app(settings)
    end = time.monotonic() + DEADLINE
    while app.issuer.under_way() and time.monotonic() < end:
        time.sleep(0.01)
    return Gateway(app)


def check_certificate(settings: Settings) -> None:
    """:raise Faults: TLS_CERT and TLS_KEY are not a certificate and its key"""
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=lambda: "")  # asks nobody for one
    except OSError as fault:
        says = f"TLS_CERT and TLS_KEY are no certificate and its key, in PEM and without a pass phrase: {fault}."
        raise Faults([says]) from fault


def free_address(settings: Settings) -> tuple[str, int]:
    """The address and port to listen on; a free port for 0. A port in use ends the start, and is not shared."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        with socket.create_server((settings.host, settings.port), family=family) as probe:
            address, port = probe.getsockname()[:2]
            return address, port
    except OSError as fault:
        other = "HOST" if isinstance(fault, socket.gaierror) or fault.errno == errno.EADDRNOTAVAIL else "PORT"
        reason = f"{str(fault.strerror).partition(' (')[0]}; choose another {other}"
        sys.exit(f"The API cannot listen on HOST {settings.host}, PORT {settings.port}: {reason}.")


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C; requests in flight finish.

    :raise Faults: the database or the certificate cannot be used :raise OSError: PostgreSQL cannot be reached
    """
    from granian import Granian  # here, because `import timesheets` needs no server and should be quick
    from granian.constants import HTTPModes, Interfaces
    from granian.http import HTTP1Settings
    from granian.log import LogLevels

    with contextlib.closing(open_database(settings.database_url)) as database:  # whose connections no worker inherits
        database.migrate()
    if settings.tls_cert:
        check_certificate(settings)
    address, port = free_address(settings)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    where = f"{'https' if settings.tls_cert else 'http'}://{host}:{port}"
    claim = settings.user_claim
    people = f"people by {claim}" if claim else "programs only, because USER_CLAIM is not set"
    print(f"Timesheets API on {where}, trusting {settings.issuer} for {settings.audience}, {people}", flush=True)
    server = Granian(
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
        workers_kill_timeout=STOP,
        log_level=LogLevels.warning,
    )
    target: Any = functools.partial(worker, settings)
    server.serve(target_loader=target, wrap_loader=False)


# ---- PostgreSQL: the same SQL, for many hosts ----

# Any number of API processes share one database, and every wait has an end. Only what every engine that speaks its
# protocol has is used: no advisory locks, no LISTEN, no extensions.


class Postgres(Database):
    """A PostgreSQL database, through psycopg and a pool of connections."""

    begin = "BEGIN; SET LOCAL lock_timeout = {}"
    snapshot = "BEGIN ISOLATION LEVEL REPEATABLE READ"
    for_update = " ORDER BY id FOR UPDATE"  # in one order, so that two writers never wait for each other
    quick = False
    patience = PATIENCE + 0.5  # the server's own limits come first, where it answers at all

    def __init__(self, url: str) -> None:
        try:
            import psycopg
            import psycopg_pool
        except ImportError:
            needed = "DATABASE_URL is PostgreSQL's, which needs a package more"
            raise Faults([f"{needed}: uv run --with 'psycopg[binary,pool]' timesheets.py"]) from None
        try:
            parts = psycopg.conninfo.conninfo_to_dict(url)
            if "@" in f"{parts.get('host')} {parts.get('dbname')}" or re.search("[^0-9,]", str(parts.get("port", ""))):
                raise psycopg.ProgrammingError  # a password that is not percent-encoded reaches into the host or port
        except psycopg.Error:  # whose text would show the password
            raise Faults(["DATABASE_URL is malformed; it must be postgresql://USER:PASSWORD@HOST/NAME."]) from None
        self.errors, self.writing = psycopg.errors, threading.Semaphore(2 * THREADS)  # its writers queue at rows
        errors = self.errors
        start = (errors.DuplicateTable, errors.DuplicateObject, errors.UniqueViolation)  # hosts that start at once
        self.busy = (errors.SerializationFailure, errors.DeadlockDetected, errors.LockNotAvailable, *start)
        logging.getLogger("psycopg").setLevel(logging.ERROR)  # what it warns of stands in our own line of the request
        self.connect = functools.partial(psycopg.connect, url, connect_timeout=PATIENCE)
        limits = "-c statement_timeout={0}s -c idle_in_transaction_session_timeout={0}s".format(2 * PATIENCE)
        options = {"autocommit": True, "client_encoding": "utf8", "options": f"{parts.get('options', '')} {limits}"}
        # A host that is gone without a word is noticed.
        options |= {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": 10_000}
        options |= {"connect_timeout": PATIENCE}
        # A connection that cannot be had again at once is for the next request to try, not for a timer of the pool's.
        waits: Any = {"timeout": PATIENCE, "reconnect_timeout": 1}
        size = 2 * THREADS
        self.pool = psycopg_pool.ConnectionPool(url, kwargs=options, min_size=1, max_size=size, open=False, **waits)

    @contextlib.contextmanager
    def connection(self) -> Iterator[Any]:
        """Lend a connection. :raise Problem: 503 or 507 for trouble that passes"""
        self.pool.open()
        try:
            with self.pool.connection() as connection:
                yield PostgresConnection(connection)
        except self.busy as fault:
            raise Problem(*BUSY, reason=fault, retry_after=1) from fault
        except self.errors.DiskFull as fault:
            raise Problem(*FULL, reason=fault, retry_after=5) from fault
        except (self.errors.OperationalError, self.errors.ReadOnlySqlTransaction) as fault:
            raise Problem(*AWAY, reason=fault, retry_after=5) from fault

    def queue_up(self, db: Any, name: str) -> None:
        """Wait until no other transaction writes for this client or person."""
        db.execute("INSERT INTO queue VALUES (?) ON CONFLICT (name) DO UPDATE SET name = excluded.name", [name])

    def new_ids(self, db: Any, count: int) -> Sequence[int]:
        """Ids for so many new entries."""
        rows = db.execute("SELECT nextval('entry_id') FROM generate_series(1, ?)", [count])
        return [entry_id for (entry_id,) in rows]

    def prepare(self) -> None:
        """Make the tables that are not the schema's, and the source of ids. :raise OSError: no server"""
        try:
            self.connect().close()  # unlike the pool, it says why it cannot
        except self.errors.OperationalError as fault:
            raise ConnectionError(f"DATABASE_URL cannot be connected to: {in_a_line(fault)}") from fault
        with self.connection() as db:
            ((encoding,),) = db.execute("SHOW server_encoding").fetchall()
            if encoding != "UTF8":
                raise Faults([f"DATABASE_URL is a database in {encoding}. It must be made with ENCODING 'UTF8'."])
            db.execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER PRIMARY KEY)")
            db.execute("CREATE TABLE IF NOT EXISTS queue (name TEXT PRIMARY KEY)")
            db.execute("INSERT INTO schema_version VALUES (0) ON CONFLICT DO NOTHING")
            db.execute("CREATE SEQUENCE IF NOT EXISTS entry_id")

    def version(self, db: Any) -> int:
        """The schema's version; hosts that start at once queue here."""
        db.execute("SET LOCAL statement_timeout = 0")  # a new index on a large table takes its time
        db.execute("UPDATE schema_version SET version = 0 WHERE version = 0")
        return int(db.execute("SELECT max(version) FROM schema_version").fetchone()[0])

    def set_version(self, db: Any, version: int) -> None:
        """Note that the schema is of this version now."""
        db.execute("INSERT INTO schema_version VALUES (?)", [version])

    def close(self) -> None:
        """Close the pool."""
        self.pool.close()


# What SQLite writes otherwise.
SPELLINGS = [("?", "%s"), (") STRICT", ")"), ("id INTEGER", "id BIGINT"), ("rowid", "ctid")]


class PostgresConnection:
    """A psycopg connection that takes SQLite's way of writing parameters and tables."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def execute(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """Run a statement -> its cursor."""
        for sqlites, ours in SPELLINGS:
            sql = sql.replace(sqlites, ours)
        return self.connection.execute(sql, values or None)

    def executemany(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run a statement for each row, in one go; new rows go by COPY, which takes a third of the time."""
        cursor = self.connection.cursor()
        if insert := re.fullmatch(r"INSERT INTO (\w+ \([^)]*\)) VALUES \((\?, )*\?\)", sql):
            with cursor.copy(f"COPY {insert[1]} FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
        else:
            cursor.executemany(sql.replace("?", "%s"), rows)


# ---- `explain`: what a token, or this set-up, lacks ----

TIMES = ("exp", "iat", "nbf")


def mark(good: bool, name: str, found: object, advice: str = "") -> bool:
    """Print one line of an explanation, with the advice if it is needed; -> whether all is well with it."""
    shown = ascii(str(found))[1:-1][:120]  # whatever a token says, the terminal gets plain characters
    print(f"{'✓' if good else '✗'} {name:10} {shown}{f'   ({advice})' if not good else ''}")
    return good


def moment(seconds: Any, now: float) -> object:
    """A NumericDate for people: how far it is from now."""
    if not is_time(seconds) or seconds >= 2**45:  # a million years, past which timedelta cannot go
        return seconds
    distance = timedelta(seconds=round(abs(seconds - now)))
    return f"{seconds}, {f'in {distance}' if seconds > now else f'{distance} ago'}"


def explain_token(app: App, token: str) -> bool:
    """Print what a token says beside what this API expects, then the verdict; -> whether it would be let in.

    Never prints the signature: what is printed cannot be used to call anything.
    """
    try:
        header, claims = (dict(json.loads(base64.urlsafe_b64decode(part + "=="))) for part in token.split(".")[:2])
    except (ValueError, TypeError, RecursionError):
        return mark(False, "token", "is no JWT", "not copied whole? Auth0 gives an opaque one to who named no audience")
    kids, now = ", ".join(app.issuer.keys) or "none can be fetched", int(app.clock())
    mark(header.get("kid") in [*app.issuer.keys], "kid", header.get("kid"), f"one of: {kids}")
    for name, good, found, expected in checks(app.settings, header, claims):
        if name not in TIMES and (found is not None or not good):
            mark(good, name, found, f"expected {expected}")
    exp, iat, nbf = (claims.get(name) for name in TIMES)
    for name, good, found, expected in in_time.__wrapped__(exp, iat, 0 if nbf is None else nbf, now):
        if name in claims or not good:
            mark(good, name, moment(found, now), f"expected {expected}")
    try:
        caller = verify(token, app)
    except Problem as problem:
        return mark(False, "verdict", f"refused with {problem.status_code}", str(problem.reason or problem.detail))
    return explain_caller(app, caller)


def explain_caller(app: App, caller: Caller) -> bool:
    """Print whom a good token speaks for, and what it opens; -> whether it opens anything."""
    claim = app.settings.user_claim or "that holds the person's e-mail"
    advice = f"put the claim {claim} into it (USER_CLAIM), or no route for people opens"
    mark(caller.person != "", "speaks for", caller.person or f"the program {caller.client}", advice)
    if caller.people is not None and "batch:upload" in caller.scopes:
        advice = f"put people or *@domain into the claim {app.settings.people_claim}"
        mark(bool(caller.people), "uploads for", ", ".join(sorted(caller.people)) or "nobody", advice)
    mark(any(caller.scopes), "scope", " ".join(sorted(caller.scopes)), "it grants none; docs/auth0.md says how")
    opened = 0
    for route in api.routes:
        access = access_of(route)
        granted = caller.scopes.intersection(access.scopes) if access else set()
        if granted and (caller.person or granted & FOR_PROGRAMS):
            opened += mark(True, "opens", f"{route.method} {path_of(route)}")
    advice = "403 everywhere: a program uploads with batch:upload, reads with report:timesheets; the rest is for people"
    return mark(opened > 0, "verdict", "accepted" if opened else "accepted, but it opens no route", advice)


def explain_settings(app: App) -> bool:
    """Print whether settings, issuer and database fit together, and what to mend; -> whether they do."""
    settings, issuer = app.settings, app.issuer
    for each in fields(Settings):
        value = getattr(settings, each.attribute)
        shown = ", ".join(value) if isinstance(value, tuple) else str(value)
        mark(True, each.name, re.sub(r"(?<=//).*@|(?<=\?).*", "...", shown) or "none")
    if not settings.user_claim:
        advice = "set USER_CLAIM to the claim that holds a person's e-mail, or leave it so"
        mark(False, "people", "are kept out", advice)
    says = issuer.description
    if says:
        known = says.get("issuer") in (settings.issuer, *settings.extra_issuers)
        alike = not str(says.get("issuer")).endswith("/") and f"{says.get('issuer')}/" == settings.issuer
        advice = "add this to EXTRA_ISSUERS" if alike else "set AUTH0_DOMAIN to this"
        good = mark(known, "issuer", says.get("issuer"), advice)
        fits = says.get("jwks_uri") == settings.keys_url()
        good &= mark(fits, "jwks_uri", says.get("jwks_uri"), "set JWKS_URL to it")
    else:
        good = mark(False, "issuer", f"{settings.issuer} does not describe itself", "is AUTH0_DOMAIN right?")
    advice = f"{settings.keys_url()} has none that can verify a token, or is away"
    good &= mark(bool(issuer.keys), "keys", ", ".join(issuer.keys) or "none", advice)
    try:
        before = app.db.migrate()
        ((count,),) = app.db.read("SELECT count(*) FROM entry WHERE voided = 0")
        where = os.path.abspath(app.db.url) if app.db.quick else "PostgreSQL"
        found = f"answers: {where}, {f'{count} entries' if before else 'made just now'}"
        return mark(True, "database", found) and good
    except Faults as faults:
        return mark(False, "database", "cannot be used", " ".join(faults.faults))
    except OSError as fault:
        return mark(False, "database", "is away", str(fault))


def explain(settings: Settings, words: Sequence[str]) -> bool:
    """Explain the token in `words`, or the set-up if there are none; -> whether all is well with it."""
    app = App(settings, time.time, Issuer(settings))
    app.issuer.refresh()
    app.issuer.thread.join(2 * DEADLINE)  # for the keys, and for what the issuer says of itself
    token = sys.stdin.read() if words == ["-"] else " ".join(words)
    token = re.sub("^(Authorization: *)?Bearer( +|$)", "", token.strip(), flags=re.IGNORECASE)
    if words and not token:
        raise Faults(["There is no token to explain; without any argument, `explain` looks at the settings."])
    try:
        good = explain_token(app, token) if words else explain_settings(app)
        print(end="", flush=True)
    except BrokenPipeError:  # `explain | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return good


def main(arguments: Sequence[str]) -> None:
    """Serve with settings from flags and environment; exit with 78 (sysexits: configuration) when they are at fault."""
    while (fd := os.open(os.devnull, os.O_RDWR)) < 3:  # after `2>&-` the database's file would be taken for the log
        pass
    os.close(fd)
    summary, _, example, *_ = (__doc__ or "").split("\n\n")
    usage = f"timesheets.py [--SETTING VALUE ...] [explain [TOKEN]]\n\n{example}"
    parser = argparse.ArgumentParser(usage=usage, description=summary, epilog=EPILOG)
    for each in fields(Settings):
        default = "required" if each.required else f"default: {each.default or 'none'}"
        flag = f"--{each.name.lower().replace('_', '-')}"
        parser.add_argument(flag, dest=each.name, metavar="…", help=f"{each.about} ({default})")
    parser.add_argument("--version", action="version", version=VERSION)
    parser.add_argument("command", nargs="?", choices=["explain"], help="say what a token, or this set-up, lacks")
    parser.add_argument("token", nargs="*", help="the token to explain; - reads it from standard input")
    given = vars(parser.parse_args(arguments))
    command, words = given.pop("command"), given.pop("token")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that cannot show a tick shows its name
        sys.stdout.reconfigure(errors="namereplace")
    try:
        settings = Settings.from_env(os.environ | {name: value for name, value in given.items() if value is not None})
        if command:
            sys.exit(int(not explain(settings, words)))
        serve(settings)
    except Faults as faults:
        print(*faults.faults, sep="\n", file=sys.stderr)
        sys.exit(78)
    except OSError as fault:
        sys.exit(f"The API cannot go on: {fault}")


EPILOG = """A flag overrides the environment variable of its name. `explain` alone makes the database if there is none.
Exit status: 0 after SIGTERM, 1 when the port or the database's server cannot be had, or something explained is
refused; 78 for the settings."""

if __name__ == "__main__":
    main(sys.argv[1:])
