#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = []
# ///
"""Bring a time tracker's entries into the Timesheets API: a cron job in one file, standard library only.

One run reads the tracker's entries, compares them with what the API holds, makes a plan, checks it and applies it.
Running it again changes nothing; after any failure: run it again.

    python sync.py --print export.csv                                    look first: no network, no settings
    python sync.py --env-file ~/.config/timesheets.env export.csv        upload an export
    python sync.py --env-file ~/.config/timesheets.env toggl             ask Toggl itself

The env file (chmod 600) holds NAME=VALUE lines; the environment wins over it: AUTH0_DOMAIN, AUTH0_AUDIENCE,
AUTH0_CLIENT_ID, AUTH0_CLIENT_SECRET, TIMESHEETS_URL; for a tracker that is asked by name SOURCE_TOKEN, and for some
SOURCE_ACCOUNT or SOURCE_URL; for an issuer other than Auth0 TOKEN_URL, TOKEN_SCOPE, TOKEN_RESOURCE. Words used below:

    format      one kind of export, one entry of the table FORMATS
    role        what a column is to us: id, user, project, date, time, start, end, duration, description ...
    person      whose row it is, as the export writes it; `user` is the same person as the API knows them
    feed        where entries come from, such as `toggl`; every key begins with it
    key         an entry's external_id: FEED:ID by the tracker's id, without one FEED:PERSON:DAY:N
    held        what the API holds of the feed
    covered     held entries of days of which the input says all there is: what it lacks there is deleted

Exit status: 0 ok, 64 usage, 65 some rows rejected, 66 no readable input, 70 the accounting does not add up,
75 try again later, 77 not authorised, 78 configuration.
"""

from __future__ import annotations

import argparse
import base64
import collections
import contextlib
import csv
import email.utils
import functools
import gc
import hashlib
import http.client
import io
import itertools
import json
import logging
import logging.handlers
import os
import pathlib
import random
import re
import signal
import socket
import ssl
import sys
import tempfile
import time
import unicodedata
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
import zoneinfo
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import date, datetime, timedelta, tzinfo
from typing import Any, NamedTuple, NoReturn

if sys.platform != "win32":
    import fcntl

VERSION = "1.0.0"
OK, USAGE, REJECTED, NO_INPUT, SOFTWARE, LATER, DENIED, CONFIG = 0, 64, 65, 66, 70, 75, 77, 78
log = logging.getLogger("sync")
clock, sleep = time.time, time.sleep  # names of their own, so that a test can put in others


class Stop(Exception):
    """The end of the run: an exit status and a sentence for whoever reads the cron mail."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@contextlib.contextmanager
def or_stop(status: int, sentence: str, *faults: type[Exception]) -> Iterator[None]:
    """End the run with this sentence if one of `faults` happens; after a colon comes what the fault says."""
    try:
        yield
    except faults as fault:
        reason = getattr(fault, "strerror", None) or fault
        raise Stop(status, f"{sentence} {reason}." if sentence.endswith(":") else sentence) from None


def many(count: int, noun: str) -> str:
    """`1 row`, `2 rows`, `3 entries`."""
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{count} {noun if count == 1 else plural}"


# ---- Values: days, times, numbers and durations as trackers write them ----

DATE = re.compile(r"(\d{1,4})([-/.])(\d{1,2})\2(\d{1,4})(?:[T ].*)?", re.ASCII)
TIME = re.compile(r"([0-9]{1,2}):([0-5][0-9])(?::([0-5][0-9]))?(?:[.,][0-9]+)?\s?(?:([ap])\.?m\.?)?", re.IGNORECASE)
MOMENT = re.compile(r"([\d./-]+)[T ]\s*(.+?)\s?(Z|[+-]\d\d:?\d\d)?", re.ASCII)
COMPACT = re.compile(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)", re.ASCII)
CLOCK = re.compile(r"(\d{1,4}):([0-5]\d)(?::([0-5]\d))?(?: ?h)?", re.ASCII)
WORDED = re.compile(  # 1h 30m, 90 min, 1,5 h, 1h30, 2 Std., PT1H30M
    r"(?:PT)?(?:([\d.,]+)\s*(?:h|hrs?|hours?|std|stunden?)\.?)?"
    r"\s*(?:([\d.,]+)\s*(?:m|mins?|minut[a-z]*|(?<=h\d\d)|(?<=h \d\d))\.?)?"
    r"\s*(?:(\d+)(?:\.\d+)?\s*(?:s|secs?|seconds?|sek)\.?)?",
    re.ASCII | re.IGNORECASE,
)
NUMBER = re.compile(r"\d{1,99}", re.ASCII)
PLAIN = re.compile(r"-?(?:\d+(?:[.,]\d*)?|[.,]\d+)", re.ASCII)
GROUPED = re.compile(r"-?\d{1,3}(?:(?:\.\d{3})+,|(?:,\d{3})+\.)\d*", re.ASCII)
HOURS, MINUTES, SECONDS = 3600, 60, 1
ORDERS = {"YMD": (0, 1, 2), "DMY": (2, 1, 0), "MDY": (2, 0, 1)}
remember = functools.lru_cache(maxsize=65_536, typed=True)  # an export repeats its days, times and lengths


@remember
def read_date(text: str, order: str | None = None) -> str:
    """A day as YYYY-MM-DD. A year in front or dots (26.01.2015) tell the order; 03/04/2024 needs to be told.

    `order` is YMD, DMY or MDY, None when nobody said and nothing proved it. :raise ValueError: what is wrong.
    """
    match = DATE.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is not a date")
    first, sign, *others = match.groups()
    if len(first) == 4:
        order = "YMD"
    elif len(others[1]) != 4:
        raise ValueError(f"{text!r} has no year of four digits; export it with one, such as 2026-11-16")
    elif sign == ".":
        order = "DMY"
    if order is None:
        raise ValueError(f"the date {text!r} can be read two ways; --date-format DMY or MDY says which")
    year, month, day = (int((first, *others)[place]) for place in ORDERS[order])
    try:
        return date(year if 1970 <= year < 3000 else 0, month, day).isoformat()
    except ValueError:
        raise ValueError(f"{text!r} is no date when read as {order}") from None


def prove_order(values: Iterable[str]) -> str | None:
    """DMY or MDY, if one of the dates proves it; None if the first one says its own. :raise Stop: both are possible."""
    doubtful = ""
    for text in values:
        match = DATE.fullmatch(text)
        if match and len(match[1]) <= 2 and match[2] != ".":
            first, second = int(match[1]), int(match[3])
            if first > 12 or second > 12:
                return "DMY" if first > 12 else "MDY"
            doubtful = doubtful or (text if first != second else "")
        elif match and not doubtful:
            return None
    if doubtful:
        says = "and no date in the input proves which. Add --date-format DMY (day first) or --date-format MDY."
        raise Stop(USAGE, f"Dates such as {doubtful} can be read two ways, {says}")
    return "DMY"


@remember
def read_time(text: str) -> str:
    """A time of day as HH:MM:SS, from 9:00, 09:00:00, 9:00 AM or 3:00pm."""
    match = TIME.fullmatch(text)
    if not match or int(match[1]) > 23 or (match[4] and not 1 <= int(match[1]) <= 12):
        raise ValueError(f"{text!r} is not a time of day")
    hour = int(match[1])
    if match[4]:
        hour = hour % 12 + (12 if match[4] in "pP" else 0)
    return f"{hour:02}:{match[2]}:{match[3] or '00'}"


@remember
def read_moment(text: str, order: str | None, zone: tzinfo | None) -> datetime:
    """A date and time as the person saw it. UTC does not tell where that was: `zone` must. :raise Stop: it does not."""
    match = MOMENT.fullmatch(COMPACT.sub(r"\1-\2-\3 \4:\5:\6", text))
    if not match:
        raise ValueError(f"{text!r} is not a date and time")
    day, time_of_day, offset = match.groups()
    utc = offset in ("Z", "+00:00", "+0000", "-00:00", "-0000")
    offset = "+00:00" if utc else f"{offset[:3]}:{offset[-2:]}" if offset else ""
    moment = datetime.fromisoformat(f"{read_date(day, order)}T{read_time(time_of_day)}{offset}")
    if utc and zone is None:
        says = "and the day depends on where the person works. Add --tz, for example --tz Europe/Berlin."
        raise Stop(USAGE, f"The times of this export are UTC ({text}), {says}")
    return moment.astimezone(zone) if utc else moment


@remember
def read_duration(written: object, unit: int) -> int | None:
    """Seconds from 1:30, 1:30:00, PT1H30M, 1h 30m, 90 min, or a number of `unit`; None for what is no duration.

    A number has a point or a comma; where both stand the later one is the decimal sign: 2.000,5 is 2000.5.
    """
    if isinstance(written, str):
        written = " ".join(written.split())
        match = CLOCK.fullmatch(written) or WORDED.fullmatch(written)
        if match and any(match.groups()):
            units = HOURS, MINUTES, SECONDS
            parts = [read_duration(part or "0", unit) for part, unit in zip(match.groups(), units)]
            return None if None in parts else sum(filter(None, parts))
        if GROUPED.fullmatch(written):
            written = written.replace("," if written.rfind(".") > written.rfind(",") else ".", "")
        elif not PLAIN.fullmatch(written):
            return None
        written = float(written.replace(",", "."))
    if not unit or isinstance(written, bool) or not isinstance(written, (int, float)) or not abs(written) < 1e12:
        return None
    return round(written * unit)


@remember
def read_zone(name: str) -> tzinfo:
    """A time zone by its name. :raise ValueError: there is none."""
    try:
        return zoneinfo.ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        lacking = "" if zoneinfo.available_timezones() else ": this Python has none at all (pip install tzdata)"
        raise ValueError(f"{name} is no time zone{lacking or '; Europe/Berlin would be one'}") from None


@remember
def spelled(name: str) -> str:
    """A person's name as the API stores it: one spelling, so that Jane@X and jane@x are one."""
    name = unicodedata.normalize("NFKC", name).strip()
    return name.casefold() if "@" in name else name


def hours(seconds: int | None) -> str:
    """Hours as people write them: 7.5, 0.3333."""
    return f"{round((seconds or 0) / 3600, 4):g}"


# ---- Formats: what exports look like; a further one is one more entry ----

# Trackers translate the headers of their CSV with the person's language: English = the other words for it.
TRANSLATIONS = {
    "Date": "Data|Datum|Dato|Datums|Dátum|Fecha|Kuupäev|Päivämäärä|Tanggal|Tarih|Ημερομηνία|Дата|Датум|日付|日期|날짜",
    "From": "Von|De|De la|Da|Od|Fra|Från|Van|Dari|Alates|Alkaen|Kezdés|Začít|Başlangıç|Από|От|С|З|Од|시작|從|始于",
    "To": "Bis|À|A|Para|Al|Aan|Tot|Til|Till|Do|Za|Kuni|Saakka|Până la|Befejezés|Ukončit|Bitiş|Kepada|Σε|До|종료|到|至",
    "Duration": "Dauer|Durée|Duración|Durata|Duração|Duur|Czas trwania|Doba trvání|Trvanie|Trajanje|Varighed|Varighet|"
    "Längd|Varaktighet|Kesto|Kestvus|Időtartam|Süre|Durasi|Ilgums|Διάρκεια|Продолжительность|Тривалість|期間|持续时间",
    "User": "Benutzer|Utilisateur|Nom d'utilisateur|Usager|Usuario|Nombre de usuario|Utente|Usuário|Utilizador|Bruker|"
    "Nome de usuário|Nome do utilizador|Gebruiker|Gebruikersnaam|Użytkownik|Uživatel|Používateľ|Korisnik|Uporabnik|"
    "Bruger|Brugernavn|Användare|Käyttäjä|Felhasználó|Felhasználónév|Χρήστης|Пользователь|用户",
    "E-mail": "Email|Courriel|Correo electrónico|Sähköposti|E-post|E-pošta|E-posta|Eposta|Эл. почта|电子邮件",
    "Project": "Projekt|Projet|Projecte|Proyecto|Progetto|Projeto|Proiect|Prosjekt|Projekti|Proje|Proyek|Έργο|Проект|"
    "Проєкт|プロジェクト|项目|專案|프로젝트",
    "Description": "Beschreibung|Descripció|Descripción|Descrizione|Descrição|Descriere|Beschrijving|Opis|Popis|Kuvaus|"
    "Beskrivelse|Beskrivning|Kirjeldus|Leírás|Açıklama|Deskripsi|Περιγραφή|Описание|Опис|説明|描述|說明",
    "Client": "Kunde|Cliente",
    "Notes": "Notizen|Notiz|Notas",
    "Hours": "Stunden|Heures|Horas",
    "First Name": "Vorname|Prénom",
    "Last Name": "Nachname",
    "Start Date": "Startdatum|Fecha de inicio|Date de début|Data de início",
    "Start Time": "Startzeit|Hora de inicio|Heure de début|Hora de início",
    "End Date": "Enddatum|Fecha de finalización|Date de fin|Data final|Data de término",
    "End Time": "Endzeit|Hora de finalización|Heure de fin|Hora de término|Fim do tempo",
    "Duration (h)": "Dauer (h)|Duración (h)|Durée (h)|Duração (h)",
    "Type": "Typ|Tipo",
}
ENGLISH = {word.casefold(): name.casefold() for name, words in TRANSLATIONS.items() for word in words.split("|")}


def in_english(column: str) -> str:
    """A CSV column's name in small letters, and in English if it is known."""
    return ENGLISH.get(column.strip().casefold(), column.strip().casefold())


class Format:
    """One kind of export.

    name        what --format takes; the part before a hyphen is the tracker, and the feed if --feed names none
    kind        csv or json
    needs       the columns by which it is recognised, commas between; `A|B` is either
    plain       the roles whose column is called as they are
    roles       role = column for the others; `A|B` takes the first that is filled; `a.b` is b inside a, as `flat` says
    unit        what a bare number in `duration` means: HOURS, MINUTES, SECONDS, or nothing we could trust (0)
    only        recognised only if no other column is there
    own         each person's tool numbers its own entries, so that an id belongs to a person

    Roles that do not say it themselves: `running` is True or `current` while a timer runs (besides, an empty end says
    so in every format), `gone` is filled when the tracker deleted the row, `type` tells work from breaks, `zone` is
    where the row was worked, and `first_name` and `last_name` are the user where nothing else is.
    """

    def __init__(
        self, name: str, kind: str, needs: str, plain: str = "", unit: int = 0, only: str = "", own: bool = False,
        **roles: str,
    ) -> None:  # fmt: skip
        self.name, self.kind, self.unit, self.own, self.source = name, kind, unit, own, name.partition("-")[0]
        fold = in_english if kind == "csv" else str
        self.needs = [[fold(column) for column in either.split("|")] for either in needs.split(", ")]
        self.only = set(only.split(", ")) if only else None
        roles = {role: role for role in plain.split(", ") if role} | roles
        self.roles = {role: [fold(column) for column in either.split("|")] for role, either in roles.items()}

    def missing(self, names: Collection[str]) -> list[str]:
        """What of `needs` is not among the column names, which for CSV are in English."""
        return ["|".join(either) for either in self.needs if not any(column in names for column in either)]


FORMATS = [
    # Toggl. Its CSV has no ids. Its API tells deletions, and a timer that runs by a negative duration; a report's row
    # holds the entries that were alike, each with an id of its own.
    Format("toggl", "csv", "Start date, Start time, Duration", "project, description, duration",
           user="E-mail|Member|User", date="Start date", time="Start time",
           end_date="End date|Stop date", end_time="End time|Stop time"),
    Format("toggl-api", "json", "id, start, duration, workspace_id|wid", "id, description, start, duration",
           unit=SECONDS, user="user_name|user_id|uid", project="project_name|project_id|pid", gone="server_deleted_at"),
    Format("toggl-reports", "json", "id, seconds, start, user_id|username", "id, description, start",
           unit=SECONDS, user="email|username|user_id", project="project_name|project_id", duration="seconds"),
    # Clockify. Dates and durations look as the workspace sets it: 1.50, 1:30 and 01:30:00 all stand in "Duration (h)".
    Format("clockify", "csv", "Start Date, Start Time, Duration (h)", "project, description, type",
           unit=HOURS, user="E-mail|User", date="Start Date", time="Start Time",
           end_date="End Date", end_time="End Time", duration="Duration (h)"),
    Format("clockify-api", "json", "timeInterval.start", "description, type",
           unit=SECONDS, id="id|_id", user="userEmail|user.email|userName|userId",
           project="projectName|project.name|projectId", start="timeInterval.start", end="timeInterval.end",
           duration="timeInterval.duration", zone="timeInterval.timeZone"),
    # Harvest. Its CSV has neither ids nor times of day.
    Format("harvest", "csv", "Date, Client, Project, Hours", "project, date",
           unit=HOURS, user="E-mail", first_name="First Name", last_name="Last Name",
           description="Notes", duration="Hours"),
    Format("harvest-api", "json", "id, spent_date, hours", "id",
           unit=HOURS, user="user.email|user.name|user.id", project="project.name|project.id", description="notes",
           date="spent_date", duration="hours", running="is_running"),
    # Kimai. There is no end date: an earlier end is the next day's. Its break is not in the duration.
    Format("kimai", "csv", "Date, From, To, Duration, Project", "id, project, description, date, duration",
           unit=HOURS, user="E-mail|User|Name", time="From", end_time="To"),
    Format("kimai-api", "json", "id, begin, duration, activity|activity.id", "id, description, end, duration",
           unit=SECONDS, user="user.email|user.username|user.id|user", project="project.name|project.id|project",
           start="begin"),
    # solidtime. The detailed CSV is in the exporter's own time; the API and the ZIP are in UTC.
    Format("solidtime", "csv", "Start, End, Duration (decimal), Project",
           "user, project, description, start, end, duration"),
    Format("solidtime-zip", "csv", "id, description, start, end, organization_id|created_at",
           "id, description, start, end, type", user="user_id|member_id", project="project_id"),
    Format("solidtime-api", "json", "id, start, end, organization_id", "id, description, start, end, duration, type",
           unit=SECONDS, user="user_id", project="project_id"),
    # Tools of the command line, one person's each: --user says whose. Timewarrior's id is a position, and never a key.
    Format("timewarrior", "json", "start", "start, end", only="id, start, end, tags, annotation",
           project="tags", description="annotation"),
    Format("watson", "json", "id, project, start, stop, tags", "id, project, start", own=True,
           end="stop", running="id"),
    # This id is cut to 7 characters: no key.
    Format("watson-csv", "csv", "id, start, stop, project, tags", "project, start", end="stop"),
    Format("timetrap", "json", "id, sheet, start, end, note", "id, start, end", own=True,
           project="sheet", description="note"),
    Format("timetrap-csv", "csv", "start, end, note, sheet", "start, end", project="sheet", description="note"),
    Format("orgclock", "csv", "task, parents, category, start, end", "start, end",
           project="category", description="task"),
    # Tempo. Its worklogs have a day and a length; the time of day is no part of them.
    Format("tempo", "json", "tempoWorklogId, timeSpentSeconds, startDate", "description",
           unit=SECONDS, id="tempoWorklogId", user="author.emailAddress|author.accountId",
           project="issue.key|issue.id", date="startDate", duration="timeSpentSeconds"),
    Format("tempo-csv", "csv", "Issue Key, Hours, Work date",
           unit=HOURS, user="E-mail|Username|Full name", project="Project Name|Project Key|Issue Key",
           description="Work Description", date="Work date", duration="Hours"),
    # Anything else that names its columns as the API does; --map names those of the rest.
    *(Format(name, kind, "date, project, hours", "project, date, external_id", unit=HOURS, own=True,
             user="user_id|E-mail|user|member|person|employee", duration="hours",
             description="description|notes|note|comment|comments")
      for name, kind in (("generic", "csv"), ("generic-json", "json"))),
]  # fmt: skip
UNITS = {"hours": HOURS, "minutes": MINUTES, "seconds": SECONDS, "duration": 0}  # --map names one of these columns
ROLES = ["user_id", "project", "description", "date", "time", "start", "end", "end_date", "end_time", "id",
         "external_id", *UNITS]  # fmt: skip
NO_WORK = {"break", "holiday", "time_off", "time off", "pause", "feiertag", "abwesenheit", "pausa", "descanso"}


class Tracker(NamedTuple):
    """A tracker that is asked by its name: where, how, and with which settings.

    form        how its answer reads, one of FORMATS
    base        scheme and host; SOURCE_URL replaces it
    path        its time entries, from {from} to the day {last}, before the day {to}; {page} and {offset} count up
    headers     what lets this job in
    who         the path that tells who asks: id, e-mail and zone
    needs       the settings SOURCE_... without which it cannot be asked
    cap         so many entries in an answer may not be all of them
    """

    form: str
    base: str
    path: str
    headers: str = "Authorization: Bearer {TOKEN}"
    who: str = ""
    needs: str = "TOKEN URL"
    cap: int = 0


BASIC = "Authorization: Basic {BASIC}"
TRACKERS = {
    "toggl": Tracker(
        "toggl-api", "https://api.track.toggl.com",
        "/api/v9/me/time_entries?start_date={from}T00:00:00Z&end_date={to}T00:00:00Z&meta=true",
        BASIC, "/api/v9/me", cap=1000,
    ),
    "toggl-reports": Tracker(
        "toggl-reports", "https://api.track.toggl.com", "/reports/api/v3/workspace/{account}/search/time_entries",
        BASIC, "/api/v9/me", "TOKEN URL ACCOUNT",
    ),
    "clockify": Tracker(
        "clockify-api", "https://api.clockify.me",
        "/api/v1/workspaces/{account}/user/{id}/time-entries"
        "?start={from}T00:00:00Z&end={to}T00:00:00Z&hydrated=true&page-size=1000&page={page}",
        "X-Api-Key: {TOKEN}", "/api/v1/user",
    ),
    "harvest": Tracker(
        "harvest-api", "https://api.harvestapp.com", "/v2/time_entries?from={from}&to={last}",
        "Authorization: Bearer {TOKEN}; Harvest-Account-Id: {ACCOUNT}", needs="TOKEN URL ACCOUNT",
    ),
    "kimai": Tracker(
        "kimai-api", "",
        "/api/timesheets?user=all&begin={from}T00:00:00&end={to}T00:00:00&full=true&size=500&page={page}",
    ),
    "solidtime": Tracker(
        "solidtime-api", "https://app.solidtime.io",
        "/api/v1/organizations/{account}/time-entries"
        "?start={from}T00:00:00Z&end={to}T00:00:00Z&limit=500&offset={offset}{member}",
        who="/api/v1/users/me",
    ),
    "tempo": Tracker("tempo", "https://api.tempo.io", "/4/worklogs?from={from}&to={last}&limit=1000"),
}  # fmt: skip


# ---- Reading: a file becomes rows, a row becomes an entry ----

# Nothing is told from a file's name, and nothing that can be meant two ways is taken: a contractor is paid by what is
# read here. A row that cannot be read stops no other; it is counted, and reported with its line. An input that says it
# is only a part is refused whole, because what it lacks would look deleted.

SPACES = re.compile(r"[\x00-\x20\x7f-\xa0]+")
UNDECODED = re.compile("[\udc80-\udcff]")
NOT_UTF8 = "The input is not UTF-8 text. Export it as CSV UTF-8, or as JSON."
WORKBOOK = "This is an Excel or LibreOffice workbook. Save it as CSV UTF-8, and hand that over."
EMPTY = (None, "", "-")  # as trackers write nothing
LISTS = ("time_entries", "timeentries", "results", "data", "nodes", "items", "entries", "worklogs", "timelogs")
SUMS = re.compile(r"\W*(sub-?total|total|totaal|totale|sum|suma|summe|gesamt)\b", re.IGNORECASE)
COUNTS = ("total_count", "totalcount", "total_entries", "totalentries", "x-total-count", "x-total")
PAGES = ("total_pages", "totalpages", "x-total-pages", "page_count", "last_page")
PAGING = {"offset", "limit", "page", "per_page", "startat", "maxresults"}  # beside these, `total` counts entries
UNFINISHED = {"more": "true", "has_more": "true", "hasmore": "true", "hasnextpage": "true", "last-page": "false"}
# Where a next page is named, by itself or as .href; `next link` is that of a Link header (RFC 8288).
NEXT = ("next link", "next", "links.next", "meta.next", "metadata.next", "paging.next", "_links.next")
Json = Any  # what json.loads makes
Object = dict[str, Json]
Headers = Mapping[str, str]
Told = dict[str, dict[str, str]]  # names that a tracker tells beside its entries: {"user": {id: name}, "project": ...}


class Sheet(NamedTuple):
    """What the rows of one input have in common."""

    form: Format
    columns: dict[str, list[str]]  # of each role, as the input writes them
    feed: str
    names: dict[tuple[str, ...], str]  # what `name_of` found already
    order: str | None = None  # of day, month and year; None if nobody said and nothing proved it
    zone: tzinfo | None = None  # where the person works, if the row does not say it
    told: Told = {}


class Row:
    """One record of the input, {column: cell}. What is wrong with it is noted, and the reading goes on."""

    __slots__ = ("cells", "faults", "line", "sheet", "values")

    def __init__(self, sheet: Sheet, line: int, cells: Object, fault: str = "") -> None:
        self.sheet, self.line, self.cells, self.faults = sheet, line, cells, [fault] if fault else []
        self.values: Object = {}  # by role, the first of its columns that is filled; some write nothing as `-`
        for role, columns in sheet.columns.items():
            for column in columns:
                if (value := cells.get(column)) not in EMPTY:
                    self.values[role] = value
                    break

    def part(self, reader: Callable[..., Json], *more: object) -> Json:
        """What a reader makes of a part of the row; None where that is at fault."""
        try:
            return reader(self, *more)
        except ValueError as fault:
            return self.faults.append(str(fault))

    def title(self, role: str) -> str:
        """The name of a role's column, as the input has it."""
        return self.sheet.columns.get(role, [role])[0]

    def wrong(self, role: str, says: object) -> ValueError:
        """A fault of a column."""
        return ValueError(f"{self.title(role)} {says}")

    def read(self, role: str, reader: Callable[..., Json], *more: object) -> Json:
        """A role's value through a reader; None where it is empty. :raise ValueError: it is wrong."""
        value = self.values.get(role)
        if value is None:
            return None
        try:
            if isinstance(value, list):
                raise ValueError("is a list")
            return reader(value if role == "duration" else str(value), *more)
        except ValueError as fault:
            raise self.wrong(role, fault) from None


class Entry(NamedTuple):
    """Hours of a person on a day: what a row says, or what the API holds."""

    key: str = ""  # the external_id; "" for a row without the tracker's id
    person: str = ""  # as the export writes it, in small letters; "" where a key does not tell
    user: str = ""
    day: str = ""
    project: str = ""
    seconds: int | None = None  # 0: no entry any more; None: not known, so what the API holds stays
    note: str = ""
    approved: bool = False
    line: int = 0  # where the row stands; 0 for what the API holds
    fault: str = ""  # why the row is rejected
    cells: Object = {}  # kept for --rejects


def recognise(kind: str, titles: Headers, options: argparse.Namespace) -> Sheet:
    """The format of a header or JSON shape, {column in English: as the input writes it}; with --map as that describes.

    :raise Stop: none fits, or two do
    """
    known = [form for form in FORMATS if form.kind == kind and options.format in ("auto", form.name)]
    if options.map:
        known = [mapped(kind, titles, options)]
    fits = [form for form in known if not form.missing(titles) and (not form.only or form.only >= set(titles))]
    fits = [form for form in fits if form.source != "generic"] or fits  # the generic one is what no tracker claims
    if len(fits) != 1:
        raise unknown(kind, titles, fits, known, options)
    columns = {  # of JSON also those that are not there: what is empty may be left out
        role: [titles.get(column, column) for column in named if column in titles or kind == "json"]
        for role, named in fits[0].roles.items()
    }
    columns = {role: found for role, found in columns.items() if found}
    return Sheet(fits[0], columns, options.feed or fits[0].source, {}, options.date_format, options.zone)


def mapped(kind: str, titles: Headers, options: argparse.Namespace) -> Format:
    """The format that --map describes."""
    form = Format("generic" if options.format == "auto" else options.format, kind, "", own=True)
    names = {title.casefold(): name for name, title in titles.items()}
    for role, column in options.map.items():
        form.roles["duration" if role in UNITS else role] = [names.get(column.casefold(), column)]
        form.unit = UNITS.get(role, form.unit)
    form.needs = list(form.roles.values())
    return form


def unknown(kind: str, titles: Headers, fits: list[Format], known: list[Format], options: argparse.Namespace) -> Stop:
    """Why an input is of none of the known formats, or of two, and what to do."""
    found = ", ".join(sorted(titles.values())) or "nothing"
    if not known:
        there = ", ".join(form.name for form in FORMATS if form.kind == kind)
        return Stop(USAGE, f"There is no {kind} format {options.format}; there are: {there}")
    if fits:
        both = " and ".join(form.name for form in fits)
        return Stop(USAGE, f"The input fits {both}; --format says which it is. Its columns are: {found}")
    near = min(known, key=lambda form: len(form.missing(titles)) / len(form.needs))
    lacking = ", ".join(near.missing(titles)) or "no other column"
    if options.map:
        return Stop(USAGE, f"--map names a column that the input lacks: {lacking}. It has: {found}")
    if kind == "csv" and len(titles) > 1 and not any(re.search("date|day|start|from|begin", name) for name in titles):
        says = "so it is a summary. Export the detailed report, which has a row for each entry."
        return Stop(NO_INPUT, f"No column of the input says a day, {says} Its columns are: {found}")
    says = f"Nearest is {near.name}, which needs: {lacking}. --map can name other columns."
    return Stop(NO_INPUT, f"The input is of no known format. Its columns are: {found}. {says}")


def read_file(content: bytes, options: argparse.Namespace) -> Iterable[Row]:
    """The rows of a file, which is CSV or JSON."""
    content = unzip(content) if content.startswith(b"PK\x03\x04") else content
    if content.startswith(b"\xd0\xcf\x11\xe0"):
        raise Stop(NO_INPUT, WORKBOOK)
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    # Bytes that are no UTF-8 come as lone surrogates: in a header or in JSON they end the run, in a row they reject it.
    with or_stop(NO_INPUT, NOT_UTF8, UnicodeError):
        text = content.decode(encoding, "surrogateescape")
        lines = list(io.StringIO(text, newline=""))
        first = next(filter(str.strip, lines), "")
        first.encode()
    if not first:
        raise Stop(NO_INPUT, "The input is empty.")
    data = as_json(text)
    if data is None:
        return read_csv(lines, options)
    if lacking := unfinished(beside(data, {}), len(listed(data))):
        raise Stop(NO_INPUT, f"The input is only a part: {lacking}. Nothing of it was uploaded.")
    return read_json(listed(data), options)


def unzip(content: bytes) -> bytes:
    """The time_entries.csv of solidtime's ZIP. :raise Stop: it is another one, or a spreadsheet."""
    says = "The ZIP file is damaged, or locked, or does not hold one time_entries.csv."
    faults = zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, RuntimeError  # the last: a password
    with or_stop(NO_INPUT, says, *faults), zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        if "[Content_Types].xml" in names or "mimetype" in names:
            raise Stop(NO_INPUT, WORKBOOK)
        (name,) = (name for name in names if name.endswith("time_entries.csv"))
        return archive.read(name)


def read_csv(lines: list[str], options: argparse.Namespace) -> Iterator[Row]:
    """Rows of a CSV file. The header is the first line that fits a format: a title may stand above it."""
    stops, told = [], ""
    for place, line in itertools.islice(((n, line) for n, line in enumerate(lines) if line.strip()), 10):
        said = re.fullmatch(r"sep=(.)\s*", line)  # Excel's way to tell the delimiter
        told = said[1] if said else told
        delimiter, titles = told or max("\t;,", key=line.count), dict[str, str]()
        written = [title.strip() for title in next(csv.reader([line], delimiter=delimiter))]
        known = {title.casefold() for title in written}
        for title in written:
            name = title.casefold() if in_english(title) in known else in_english(title)
            if name in titles:  # of two columns of one name the first counts; the other gets a name that is free
                others = (f"{title} {number}" for number in itertools.count(len(titles)))
                title = next(other for other in others if other.casefold() not in known)
                name = title.casefold()
            titles[name] = title
        try:
            sheet = recognise("csv", titles, options)
            break
        except Stop as stop:
            stops.append((len(titles), -place, stop))
    else:
        raise max(stops, key=lambda stop: stop[:2])[2]

    def rows(sheet: Sheet) -> Iterator[Row]:
        return (Row(sheet, *record) for record in records(lines, list(titles.values()), delimiter, place + 1))

    if not sheet.order:
        dates = (row.values.get(role, "") for row in rows(sheet) for role in ("date", "start"))
        sheet = sheet._replace(order=prove_order(value.partition(" ")[0] for value in dates))
    return rows(sheet)


def records(lines: list[str], titles: list[str], delimiter: str, place: int) -> Iterator[tuple[int, Object, str]]:
    """The records of CSV from a place on -> yields (line where it begins, {title: cell}, what is wrong with it).

    Quotes at fault make the rest one cell; so the line where such a record begins is a reject, and the next line is
    read as if nothing had been.
    """
    empty, start, end = [""] * len(titles), place, place
    reader = csv.reader(itertools.islice(lines, start, None), delimiter=delimiter, strict=True)
    while end < len(lines):
        line = end + 1
        try:
            cells = next(reader)
            over, end = any(cells[len(titles) :]), start + reader.line_num
            says = "the row has more cells than the header; is a comma not quoted?" if over else ""
        except csv.Error as fault:
            cells, start, end = [lines[end]], line, line
            says = f"its quotes are at fault ({fault}); a quote inside a cell must be doubled"
            reader = csv.reader(itertools.islice(lines, start, None), delimiter=delimiter, strict=True)
        if cells:
            yield line, dict(zip(titles, map(str.strip, cells + empty))), says


def read_json(found: list[Json], options: argparse.Namespace, **facts: Json) -> Iterator[Row]:
    """Rows of a JSON array; a row's line is its number. `facts` are what a tracker tells of all rows, as in Sheet."""
    rows: list[tuple[int, Object]] = []
    for number, row in enumerate(found, start=1):
        if not isinstance(row, dict):
            raise Stop(NO_INPUT, f"Row {number} of the JSON is no object, so it is no tracker's export.")
        with or_stop(NO_INPUT, f"Row {number} of the JSON is nested too deep.", RecursionError):
            record = flat(row)
            parts = record.get("time_entries")  # a row of Toggl's reports holds all entries that are alike
            if not isinstance(parts, list) or not all(isinstance(part, dict) and "seconds" in part for part in parts):
                parts = [{}]
            rows += [(number, {**record, **flat(part)}) for part in parts]
    if rows:
        sheet = recognise("json", {name: name for _, record in rows for name in record}, options)._replace(**facts)
        for number, record in rows:
            yield Row(sheet, number, record)


def flat(record: Object, way: str = "") -> Object:
    """{"user": {"name": "Kim"}} as {"user.name": "Kim"}: a column of JSON is called by the way that leads there.

    A list of one is what it holds, and an empty one is nothing.
    """
    columns: Object = {}
    for name, value in record.items():
        if isinstance(value, dict):
            columns.update(flat(value, f"{way}{name}."))
        elif isinstance(value, list) and (not value or (len(value) == 1 and isinstance(value[0], (str, int, float)))):
            columns.update(flat({name: value[0] if value else None}, way))
        else:
            columns[way + name] = value.strip() if isinstance(value, str) else value
    return columns


def as_json(text: str) -> Json:
    """What JSON says, None for a text that begins otherwise. `null` is an empty list. :raise Stop: it is broken."""
    text = text.lstrip("\ufeff\t\r\n ")
    if text[:1] not in ("[", "{") and text[:9].strip() != "null":
        return None
    with or_stop(NO_INPUT, NOT_UTF8, UnicodeError):
        text.encode()
    with or_stop(NO_INPUT, "The input begins like JSON and is none:", ValueError, RecursionError):
        data = json.loads(text)
    return [] if data is None else data


def listed(data: Json) -> list[Json]:
    """The array in an API's answer, bare or inside objects; an object without one is the only row.

    :raise Stop: there are errors beside the rows
    """
    if not isinstance(data, dict):
        return data or []
    if data.get("errors"):
        says = "The input reports errors beside its rows, so it may not be whole; nothing of it was uploaded."
        raise Stop(NO_INPUT, says)
    if data and all(isinstance(value, dict) and name.isdigit() for name, value in data.items()):
        return list(data.values())
    called = {name.casefold(): value for name, value in data.items()}
    inside = [called[name] for name in LISTS if isinstance(called.get(name), (list, dict))]
    inside = inside or [value for value in data.values() if isinstance(value, dict)]
    if inside and isinstance(inside[0], list):
        return inside[0]
    rows = listed(inside[0]) if len(inside) == 1 else inside
    return [data] if rows == inside else rows


def beside(data: Json, headers: Headers) -> Object:
    """What an answer says beside its rows, in its body and its headers; names in small letters."""
    said = flat(data) if isinstance(data, dict) else {}
    said = {name.casefold(): value for name, value in (*said.items(), *headers.items())}
    return {**said, "next link": linked(headers)}


def unfinished(said: Object, count: int, pages: int = 1) -> str:
    """Why an answer of `count` rows in so many pages is not all, in its own words; "" if it does not say so."""
    for name, value in said.items():
        inside, _, last = name.rpartition(".")
        number = int(value) if NUMBER.fullmatch(str(value)) else 0
        total = last in COUNTS or (last == "total" and (inside in ("meta", "pagination") or PAGING & said.keys()))
        if total and number > count:
            return f"it holds {count} of {many(number, 'entry')}"
        if UNFINISHED.get(last) == str(value).casefold():
            return f"it says {name}: {value}"
        if last in PAGES and number > pages:
            return f"it has {value} pages"
    named = said.get("next_page") or said.get("nextpagetoken") or next_page(said, "")
    return "it names a next page" if named else ""


def next_page(said: Object, here: str) -> str:
    """The next page's address as most APIs say it, which is one of NEXT; "" on the last one.

    :raise Stop: it is no address, or on another host, which must learn no secrets
    """
    named = next(filter(None, (said.get(f"{name}{href}") for name in NEXT for href in ("", ".href"))), "")
    with or_stop(NO_INPUT, "The tracker names a next page without an address.", ValueError, TypeError, AttributeError):
        following = str(urllib.parse.urljoin(here, named)) if named else ""
        if here and following and urllib.parse.urlsplit(following)[:2] != urllib.parse.urlsplit(here)[:2]:
            raise Stop(NO_INPUT, "The tracker's next page is on another host; its authorization does not follow there.")
    return following


def linked(headers: Headers) -> str:
    """The address of the next page in a Link header, "" without one."""
    link = re.search(r'<([^>]*)>\s*;[^,]*rel="?next"?', headers.get("Link") or "")
    return link[1] if link else ""


def interpret(row: Row, options: argparse.Namespace) -> Entry | None:
    """What a row says; None for one that is no entry at all: a row of sums, or a day outside the window.

    Of a row at fault it says what could be read, which protects what the API holds.
    """
    if row.faults:
        return Entry(line=row.line, fault=row.faults[0], cells=row.cells)
    if is_sum(row):
        return None
    zone = row.part(Row.read, "zone", read_zone) if "zone" in row.values else row.sheet.zone
    day, start = (None if row.faults else row.part(began, zone)) or ("", None)
    if options.window and day and not options.window[0] <= day <= options.window[1]:
        return None
    person = row.part(person_of, options) or ""
    user = row.part(name_of, "user", person, options) if person else None
    worked = row.part(worked_time, day, start, zone) if day else None
    project = row.part(name_of, "project", options.project, options) if worked else None
    note = row.values.get("description")
    note = SPACES.sub(" ", note).strip() if isinstance(note, str) else ""
    said = f"{user}{project}{note}"
    if not said.isascii() and UNDECODED.search(said):
        column = next((name for name, cell in row.cells.items() if UNDECODED.search(str(cell))), "--project")
        row.faults.append(f"{column} is not UTF-8; export as CSV UTF-8, or as JSON")
    if user == "" or project == "":  # --names leaves them out
        worked = 0
    person, fault = person.casefold(), "; ".join(row.faults)
    told = user or "", day, project or "", None if fault else worked, note, False
    return Entry(key_of(row, person), person, *told, row.line, fault, row.cells if options.rejects or fault else {})


def is_sum(row: Row) -> bool:
    """Whether a row has no day, and begins with a word such as `Total` or holds a duration only: it sums up others."""
    said = row.values
    if "date" in said or "start" in said or "id" in said:
        return False
    first = next((str(cell) for cell in row.cells.values() if cell), "")
    return not said.keys() - {"duration"} or bool(SUMS.match(first))


def person_of(row: Row, options: argparse.Namespace) -> str:
    """Whose row it is, as the export writes it, or as --user says where it does not. :raise ValueError: nobody does."""
    said = row.values
    person = said.get("user") or " ".join(str(said[role]) for role in ("first_name", "last_name") if role in said)
    person = person or options.user
    if not person:
        raise row.wrong("user", "is empty; --user EMAIL says whose the row is")
    return str(person)


def began(row: Row, zone: tzinfo | None) -> tuple[str, datetime | None]:
    """(calendar day, start) of a row; no start without a time, and no day where one of them is at fault.

    :raise ValueError: neither a day nor a start is there, or the start cannot be read
    """
    if "date" in row.values:
        day = row.part(Row.read, "date", read_date, row.sheet.order)
        clocked = "start" in row.values and TIME.fullmatch(str(row.values["start"]))
        at = row.part(Row.read, "start" if clocked else "time", read_time)
        return ("" if row.faults else day), (datetime.fromisoformat(f"{day}T{at}") if day and at else None)
    start = row.read("start", read_moment, row.sheet.order, zone)
    if not start:
        raise row.wrong("start" if "start" in row.sheet.columns else "date", "is empty")
    return start.date().isoformat(), start


def key_of(row: Row, person: str) -> str:
    """The external_id of a row that has an id, "" without one; nothing that people edit is part of it."""
    said, sheet = row.values, row.sheet
    if "external_id" in said or "id" not in said:
        return str(said.get("external_id", ""))
    return f"{sheet.feed}:{person}:{said['id']}" if sheet.form.own else f"{sheet.feed}:{said['id']}"


def worked_time(row: Row, day: str, start: datetime | None, zone: tzinfo | None) -> int | None:
    """Seconds of work in a row; 0 for a break or what the tracker deleted; None while a timer runs, which shows by an
    empty end or (Toggl) a negative duration. :raise ValueError: they cannot be read.

    A duration that cannot be read gives way to end minus start (Excel makes `02:00:00 AM` of two hours), as does one
    that contradicts them: shorter is a break, longer is rounding, up to the hour of a night when the clocks change; but
    nobody means more, or a spreadsheet's fraction of a day (0.0625 for 1:30).
    """
    said, columns = row.values, row.sheet.columns
    if "gone" in said or ("type" in said and str(said["type"]).casefold() in NO_WORK):
        return 0
    end = "end" if "end" in columns else "end_time" if "end_time" in columns else ""
    if str(said.get("running")) in ("True", "current") or (end and end not in said):
        return None
    written, unit, good = said.get("duration"), row.sheet.form.unit, len(row.faults)
    worked = row.read("duration", read_duration, unit)
    took = row.part(between, end, day, start, zone) if end and start else None
    if worked is None:
        if took is None and len(row.faults) == good:
            raise row.wrong("duration", f"{written!r} is no duration, and no end says it" if written else "is empty")
        return took
    del row.faults[good:]  # beside a duration a fault of the end does not count
    if took and (worked > took + 3600 or abs(worked * 24 - took) < 60):
        says = f"{row.title('duration')} {written} is not what start and end say; {hours(took)} h were taken"
        log.error("line %s: %s", row.line, says)
        return took
    if worked < 0 and unit != SECONDS:
        raise row.wrong("duration", "is negative")
    return worked if worked >= 0 else None


def between(row: Row, role: str, day: str, start: datetime, zone: tzinfo | None) -> int:
    """Seconds from a row's start to its end; by the clock alone, an end before the start is on the next day.

    :raise ValueError: the end cannot be read, or is none of this start
    """
    if role == "end_time" or TIME.fullmatch(str(row.values[role])):
        last, at = row.part(Row.read, "end_date", read_date, row.sheet.order), row.read(role, read_time)
        end = datetime.fromisoformat(f"{last or day}T{at}")
        end = end.replace(tzinfo=start.tzinfo) if start.tzinfo else end
        if not last and end < start:
            end += timedelta(days=1)
    else:
        end = row.read(role, read_moment, row.sheet.order, zone)
    if (start.tzinfo is None) != (end.tzinfo is None):
        raise row.wrong(role, "and the start must both say their zone, or neither")
    if start.tzinfo is None and zone:  # a night when the clocks change counts as long as it was
        start, end = start - zone.utcoffset(start), end - zone.utcoffset(end)
    took = round(end.timestamp() - start.timestamp() if start.tzinfo else (end - start).total_seconds())
    if took < 0:
        raise row.wrong(role, "is before the start")
    return took


# ---- Naming: what the export calls people and projects becomes what the API calls them ----

# A tracker knows people and projects by other names than the API, or by numbers. A number never becomes a name by
# itself: nobody would find their hours under 9001.

ID = re.compile(r"(?:\d+:)?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{24}", re.IGNORECASE)
ID_COLUMN = re.compile(r"[^@\s]*\d[^@\s]*")


def read_names(path: str) -> Told:
    """The file of --names, CSV with the columns what, from, to -> {what: {from in small letters: to}}.

    :raise Stop: it cannot be used
    """
    names: Told = {"user": {}, "project": {}}
    with or_stop(USAGE, f"{path} cannot be read:", OSError, UnicodeError, csv.Error):
        text = pathlib.Path(path).read_text(encoding="utf-8-sig") if path else ""
        for number, cells in enumerate(csv.reader(text.splitlines()), start=1):
            what, name, to = ([cell.strip() for cell in cells] + ["", "", ""])[:3]
            if not any(cells) or [what, name, to] == ["what", "from", "to"]:
                continue
            if names.get(what, {}).setdefault(name.casefold(), to) != to or what not in names or not name:
                says = "expected `user,NAME IN THE TRACKER,NAME IN THE API`, or `project,...`, and one line a name"
                raise Stop(USAGE, f"{path}, line {number}: {says}.")
    return names


def line_of(kind: str, name: Json, to: str) -> str:
    """A line of --names."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow([kind, name, to])
    return text.getvalue()


def name_of(row: Row, kind: str, default: str | None, options: argparse.Namespace) -> str:
    """What the API calls the user or project of a row, "" for one that --names leaves out.

    :raise ValueError: the row says none, several, an id, or a name that --names lacks
    """
    if kind == "user" and options.user:
        return spelled(options.user)
    columns, names = row.sheet.columns.get(kind, ()), row.sheet.names
    written = (kind, default, *map(repr, map(row.cells.get, columns)))  # 7 is not "7", and nothing is not "None"
    if written not in names:
        cells = [(column, row.cells.get(column)) for column in columns]
        called = [
            (column, name.strip() if isinstance(name, str) else name)
            for column, cell in cells
            for name in (cell if isinstance(cell, list) else [cell])
        ]
        called = [(column, name) for column, name in called if name not in EMPTY]
        told = row.sheet.told.get(kind, {})
        called = [("", told[str(name)]) for _, name in called if told.get(str(name))] + called
        name = choose(kind, called or [("", default)], row, options)
        names[written] = spelled(name) if kind == "user" else name
    return names[written]


def choose(kind: str, called: list[tuple[str, Json]], row: Row, options: argparse.Namespace) -> str:
    """The one of several (column, name) that counts, as the API calls it. :raise ValueError: none does.

    Of several tags that is the one that --names knows, or that is written `project:NAME`. An id is a number of JSON, a
    UUID or the like, or what has a digit in a column of ids; but a generic export means what it says.
    """
    lines = options.names[kind]
    called = [(column, name[8:].strip()) for column, name in called if str(name)[:8] == "project:"] or called
    known = [lines[str(name).casefold()] for _, name in called if str(name).casefold() in lines]
    if known:
        return known[0]
    (column, name), *others = called
    if not name:
        raise row.wrong(kind, "is empty; --project NAME says it")
    says = ""
    if lines:
        says = f"is not in {options.names_file}, which lacks a line"
    elif others and others[0][0] == column != "":
        says = "is one of several; --names FILE tells which one counts, by a line"
    elif isinstance(name, (dict, list)):
        says = "is no name; --names FILE tells it, by a line"
    elif isinstance(name, (int, float)) or (ID_COLUMN if column[-2:].casefold() == "id" else ID).fullmatch(name):
        meant = row.sheet.form.source == "generic" and not options.map
        says = "" if meant else "is an id, no name; --names FILE tells it, by a line"
    if says:
        line = line_of(kind, name, "EMAIL" if kind == "user" else "NAME")
        raise ValueError(f"{column or row.title(kind)} {name!r} {says}: {line}")
    return str(name)


class Export:
    """What the sources say, taken row by row, and the count of all rows."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.feed, self.person, self.read = options, options.feed or "", "", 0
        self.rows: list[Entry] = []
        self.rejects: list[Entry] = []
        self.counts: collections.Counter[str] = collections.Counter()  # how many rows ended how
        self.said: dict[object, tuple[object, ...]] = {}  # by key; of rows without one by how often they came

    def take(self, rows: Iterable[Row]) -> None:
        """Sort in every row of a source. Two sources may overlap: what an earlier one said already is said once.

        :raise Stop: the source is another tracker's, or --user would make one person of two
        """
        count: dict[object, int] = collections.defaultdict(int)
        for row in rows:
            self.read += 1
            self.feed = self.feed or row.sheet.feed
            if row.sheet.feed != self.feed:
                raise Stop(USAGE, f"The sources are of {self.feed} and of {row.sheet.feed}; run once for each.")
            said = interpret(row, self.options)
            if said is None:
                self.counts["skipped"] += 1
                continue
            self.person = self.person or said.person
            if self.options.user and said.person and said.person != self.person:
                names = f"There are rows of {self.person} and of {said.person}"
                raise Stop(USAGE, f"{names}; --user would give all to one person. --names FILE tells who is who.")
            if self.options.add_only and not said.seconds:
                said = said._replace(seconds=None)
            alike = (*said[:8], said.fault, str(said.cells) if said.fault else "")
            count[alike] += 1
            first = self.said.setdefault(said.key if said.key and not said.fault else (alike, count[alike]), alike)
            if first is not alike and first == alike:
                self.counts["skipped"] += 1
                continue
            if first is not alike:
                why = "is the key of an earlier row, which says something else; one of the two must be wrong"
                said = said._replace(seconds=None, fault=f"{said.key} {why}")
            self.rows.append(said)
            if said.fault:
                self.rejects.append(said)

    def covered(self, held: list[Entry]) -> set[str]:
        """The keys of held entries that the input says all about: of its days, or of all of a window.

        A row without an id mentions a day of a person; a row with an id speaks for itself only, because an answer may
        hold no more than what changed. What an unreadable row may be about is left alone.
        """
        if self.options.add_only:
            return set()
        people, days, doubtful = set(), set(), set()
        for row in self.rows:
            names = {row.user, row.person} - {""}
            if row.fault:
                doubtful |= {(name, row.day) for name in names or {""}}
            else:
                people |= names
                days |= {(name, row.day) for name in names if not row.key and row.seconds is not None}
        found = set()
        for entry in held:
            names = {entry.user, entry.person} - {""}
            said = names & people if self.options.covers else any((name, entry.day) in days for name in names)
            if said and not any((name, day) in doubtful for name in names | {""} for day in (entry.day, "")):
                found.add(entry.key)
        return found


# ---- Matching: the plan ----

# What the input says and what the API holds are compared before anything is sent. However the tracker's entries were
# edited, each row ends with exactly one entry that says what it says, and no other entry is left on a covered day.

Same = Callable[[Entry], Any]
EQUAL: Same = lambda entry: (entry.user, entry.day, entry.project, entry.seconds, entry.note)  # noqa: E731
PASSES: list[tuple[Same, bool]] = [  # how a row finds its entry, best first: what must be the same, whether approved
    (EQUAL, True), (EQUAL, False),
    *((same, approved)
      for same in (lambda entry: (entry.project, entry.note), lambda entry: (entry.project, entry.seconds), lambda _: 0)
      for approved in (False, True)),
]  # fmt: skip


class Change(NamedTuple):
    """A step of the plan. `sign` is + create, ~ update, - delete, = as it is, ! an approved entry is in the way.

    An update whose `key` is not the old entry's deletes that one and creates this one: the tracker tells its id now.
    """

    sign: str
    key: str
    row: Entry | None = None
    old: Entry | None = None


def find(rows: list[Entry], held: list[Entry], covered: set[str]) -> tuple[dict[int, Entry], dict[str, Entry]]:
    """The held entry of each row that has one, by the row's place, and by key those that no row has found."""
    left = {entry.key: entry for entry in sorted(held, key=lambda entry: (len(entry.key), entry.key))}
    found = {place: left.pop(row.key) for place, row in enumerate(rows) if row.key in left}

    def pair(passes: list[tuple[Same, bool]], by_id: bool, fits: Callable[[Entry], object]) -> None:
        """Give each row that waits an entry of its day and person, by the first pass in which they are the same."""
        if not left:
            return
        waiting = [n for n, row in enumerate(rows) if row.seconds and n not in found and bool(row.key) == by_id]
        names: dict[tuple[str, str], dict[str, None]] = collections.defaultdict(dict)
        for row in (rows[place] for place in waiting):  # what the rows of one person's day call them, all together
            names[row.user, row.day].update(dict.fromkeys([row.user, row.user if by_id else row.person]))
        for same, approved in passes:
            free: dict[object, list[str]] = collections.defaultdict(list)
            for entry in (entry for entry in left.values() if entry.approved == approved and fits(entry)):
                for name in {entry.user, entry.person}:
                    free[name, entry.day, same(entry)].append(entry.key)
            for place in waiting:
                user, day, what = rows[place].user, rows[place].day, same(rows[place])
                keys = (key for name in names[user, day] for key in free.get((name, day, what), ()))
                if key := next((key for key in keys if key in left), ""):
                    found[place] = left.pop(key)
            waiting = [place for place in waiting if place not in found]

    pair(PASSES, False, lambda entry: True)
    pair(PASSES[:2], True, lambda entry: entry.person)
    pair(PASSES, True, lambda entry: entry.person and entry.approved and entry.key in covered)
    return found, left


def match(rows: list[Entry], held: list[Entry], covered: set[str], feed: str) -> list[Change]:
    """Compare what the input says with what the API holds of the feed -> the plan, in the order of the rows.

    - A row with an id is the held entry of that key. If there is none, it takes the place of an equal entry of its day
      that came without an id: the same tracker, once by CSV and now by its API. (Where all of the day is covered, an
      approved one need not be equal.)
    - A row without an id is an entry of its day and person (by either of their names): one that is equal, approved ones
      first; else one with its project and note; else with its project and hours; else the next, approved ones last. A
      row that finds none is new, and gets the first number of that day that is free.
    - An approved entry never changes. A row that found one which says something else is told, and not stored beside
      it, because then both would be paid.
    - A row of no length deletes the entry of its key, wherever that is; a row of unknown length (a running timer) keeps
      it as it is.
    - A covered entry that no row found is deleted.
    """
    found, left = find(rows, held, covered)
    numbers: dict[tuple[str, str], Iterator[int]] = collections.defaultdict(lambda: itertools.count(1))
    taken, changes = {entry.key for entry in held}, []
    for place, row in enumerate(rows):
        old = found.get(place)
        key = row.key or (old.key if old else "")
        if row.seconds and not key:
            keys = (f"{feed}:{row.person}:{row.day}:{number}" for number in numbers[row.person, row.day])
            key = next(key for key in keys if key not in taken)
        if sign := sign_of(row, old):
            changes.append(Change(sign, key, row, old))
    return changes + [Change("!" if left[key].approved else "-", key, old=left[key]) for key in left if key in covered]


def sign_of(row: Entry, old: Entry | None) -> str:
    """What becomes of a row, of which the API holds `old`; "" where there is nothing to do or to tell."""
    if row.seconds is None or not (old or row.seconds or row.key):
        return ""
    if not old:
        return "+" if row.seconds else "-"
    if EQUAL(row) == EQUAL(old) and (row.key in ("", old.key) or old.approved):
        return "="
    return "!" if old.approved else "~" if row.seconds else "-"


def guard(
    changes: list[Change], rows: list[Entry], held: list[Entry], covered: set[str], options: argparse.Namespace
) -> None:
    """Refuse a plan that looks like an incomplete or another export, unless --max-delete says that it is meant.

    Refuse one, too, that brings hours which the API holds under another name of perhaps the same person.

    :raise Stop: 64, with the first lines of the plan and the ways out
    """
    base = len(covered | {change.old.key for change in changes if change.old})
    lost = [c for c in changes if c.old and (c.sign == "-" or (c.row and c.row.user != c.old.user))]
    why = "Is the input complete, and of the right people?"
    limits = [(lost, max(5, base // 10), base, "deletes, or gives to another person,", why)]
    theirs: dict[str, list[Change]] = collections.defaultdict(list)
    for change in changes:
        for user in {entry.user for entry in (change.row, change.old) if entry and change.old}:
            theirs[user].append(change)
    why = "Another export of the same person (project, workspace) looks so: give each its --feed NAME."
    for user in {row.user for row in rows if row.seconds and not row.key}:
        count, other = len(theirs[user]), [change for change in theirs[user] if change.sign != "="]
        limits += [(other, count // 2, count, "would rewrite", why)] if count >= 4 else []
    for steps, limit, count, does, why in limits:
        if len(steps) > (limit if options.max_delete is None else options.max_delete):
            lines = "".join(f"\n    {in_a_line(step)}" for step in steps[:5])
            says = f"The plan {does} {len(steps)} of {many(count, 'entry')} that the API holds of these days. {why}"
            meant = f"If it is meant: --max-delete {len(steps)}. Nothing was sent. It begins so:{lines}"
            raise Stop(USAGE, f"{says} {meant}")
    if not options.user and not options.names["user"] and (names := other_spelling(rows, held)):
        lines = f"`{line_of('user', *names)}` to --names FILE; if they are two, `{line_of('user', names[0], names[0])}`"
        why = f"The API holds these hours of {names[0]} already, as {names[1]}'s. If that is one person, add the line"
        raise Stop(USAGE, f"{why} {lines}. Nothing was sent.")


def other_spelling(rows: list[Entry], held: list[Entry]) -> tuple[str, str] | None:
    """A person of whom the API holds nothing, and one of whom the input says nothing, who share a word of their names
    and half of the hours; None if there are no two such.
    """
    said, kept = ({name for entry in entries for name in (entry.user, entry.person)} for entries in (rows, held))
    both, theirs = said & kept, collections.defaultdict[str, set[object]](set)
    for entry in (*held, *rows):
        if entry.user not in both:
            theirs[entry.user].add(EQUAL(entry)[1:])
    for new, old in itertools.product(theirs.keys() - kept, theirs.keys() - said):
        words, others = (set(re.findall(r"[^\W\d_]{2,}", name.casefold().partition("@")[0])) for name in (new, old))
        if words & others and 2 * len(theirs[new] & theirs[old]) >= len(theirs[new]):
            return new, old
    return None


def in_a_line(change: Change) -> str:
    """A step of the plan in a line: sign, day, user, project, hours, note, and of an update what it was."""
    new, old = (
        [entry.day, entry.user, entry.project, f"{hours(entry.seconds)} h", entry.note] if entry else []
        for entry in (change.row, change.old)
    )
    shown = new if change.row and change.row.seconds else old
    was = [before for before, now in zip(old, shown) if before != now]
    return " ".join([change.sign, *shown, f"(was {', '.join(was)})" if any(was) else ""]).strip()


# ---- HTTP: deadlines, retries, no redirects ----

# What can go wrong between two machines does, at night, with nobody there. Each answer has a time limit, and the whole
# run has one. Trouble that passes is met by trying again, after a pause that is random, so that a hundred jobs that
# failed together do not come back together. It is safe: the API knows each row by its key, and takes it once.

LOOPBACK = re.compile(r"localhost|127(\.\d{1,3}){3}|::1")
SECONDS_ASKED = re.compile(r"\d{1,12}", re.ASCII)
TRIES, TIMEOUT, DEADLINE, LARGEST = 5, 30, 480, 64 * 1024 * 1024  # seconds for one answer and for the whole run; bytes
AGAIN = {402, 408, 425, 429}  # besides every 5xx; a tracker's 402 is a quota, which comes back
Answer = tuple[int, Headers, bytes]  # status, headers, body


def safe_url(name: str, url: str) -> str:
    """An https address, or http on this machine. :raise Stop: any other."""
    with or_stop(CONFIG, f"{name} is not a web address that can be used; it must hold no password.", ValueError):
        parts = urllib.parse.urlsplit(url)
        if not parts.hostname or parts.port == 0 or "@" in parts.netloc or not re.fullmatch("[!-~]+", url):
            raise ValueError
    if parts.scheme != "https" and not (parts.scheme == "http" and LOOPBACK.fullmatch(parts.hostname)):
        raise Stop(CONFIG, f"{name} must start with https://, because what goes over http:// can be read on its way.")
    return url


def send(url: str, headers: dict[str, str], body: bytes | None, deadline: float) -> Answer:
    """Ask once -> the answer, whatever the status. :raise OSError, HTTPException: no answer.

    Every try makes a request of its own: urllib writes the proxy into the one it sends, and would send it a second
    time to the proxy itself, in clear text.
    """
    here = LOOPBACK.fullmatch(urllib.parse.urlsplit(url).hostname or "")
    opener = urllib.request.OpenerDirector()  # without a handler for redirects: a token follows nobody elsewhere
    proxy = urllib.request.ProxyHandler({} if here else None)
    for handler in (proxy, urllib.request.HTTPHandler(), urllib.request.HTTPSHandler()):
        opener.add_handler(handler)
    said, request = bytearray(), urllib.request.Request(url, body, headers)
    with opener.open(request, timeout=min(TIMEOUT, max(1, deadline - clock()))) as answer:
        while chunk := answer.read1(65_536):
            said += chunk
            if len(said) > LARGEST or clock() > deadline:
                raise OSError("the answer is endless")
        if answer.length:
            raise OSError("the answer was cut off")
    return answer.status, answer.headers, bytes(said)


def pause(headers: Headers, attempt: int) -> float:
    """Seconds to wait before another try: what the server asks for, else a random time that doubles (full jitter)."""
    asked, reset = (headers.get(name) or "" for name in ("Retry-After", "x-ratelimit-reset"))
    if SECONDS_ASKED.fullmatch(asked):
        return int(asked)
    with contextlib.suppress(ValueError, TypeError):  # absent, or no date
        return max(0, email.utils.parsedate_to_datetime(asked).timestamp() - clock())
    # Auth0 says when, in seconds since 1970; others say in how many seconds. It matters when no request is left.
    if SECONDS_ASKED.fullmatch(reset) and headers.get("x-ratelimit-remaining", "0") == "0":
        return max(0, int(reset) - clock()) if len(reset) > 9 else int(reset)
    return random.uniform(1, min(60, 2 ** (attempt + 1)))


def persist(what: str, deadline: float, url: str, headers: dict[str, str], body: bytes | None) -> Answer:
    """Send until there is an answer worth having: of another status than 5xx and AGAIN, for the caller to judge.

    :raise Stop: 75 after TRIES times or at the deadline, or 78 for a certificate that nobody vouches for
    """
    trouble, host = "", urllib.parse.urlsplit(url).netloc
    for attempt in range(TRIES):
        found: Headers = {}
        try:
            status, found, said = send(url, headers, body, deadline)
            if status < 500 and status not in AGAIN:
                return status, found, said
            trouble = f"{what} at {host} answered {status}"
        except (OSError, http.client.HTTPException) as fault:
            reason = fault.reason if isinstance(fault, urllib.error.URLError) else fault
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise Stop(CONFIG, f"{what}: the certificate cannot be trusted ({reason.verify_message}).") from None
            hint = "; is that its name?" if isinstance(reason, socket.gaierror) else ""
            trouble = f"{what} at {host} cannot be reached ({reason}{hint})"
        wait = pause(found, attempt)
        if attempt + 1 == TRIES or clock() + wait > deadline:
            break
        log.info("%s; trying again in %.0f s", trouble, wait)
        sleep(wait)
    raise Stop(LATER, f"{trouble}. Nothing is lost: run again later; what was uploaded is known and not sent twice.")


# ---- Asking: a tracker by its name, or any address ----

# An answer is read to its last page, or refused: what is not in it would look deleted. Whatever a tracker says about
# the rest (a total, a count of pages, a next page) must come true.

ODD = (ValueError, LookupError, TypeError, AttributeError)  # what an answer of another shape leads to
BY_PERIOD = ("/search/time_entries", "/search/time_entries.csv")  # Toggl's reports are POSTed their days


class Web(NamedTuple):
    """What is asked, and what lets this job in."""

    base: str  # what comes before a path; "" where that is a whole address
    headers: dict[str, str]
    deadline: float

    def ask(self, url: str, body: bytes | None = None, after_last: bool = False) -> Answer:
        """One answer. :raise Stop: it cannot be had; but a 404 after the last page is how Kimai ends."""
        headers = {"User-Agent": f"timesheets-sync/{VERSION}", "Accept": "application/json, text/csv;q=0.5"}
        headers |= {"Content-Type": "application/json"} if body else {}
        headers |= self.headers
        status, found, text = persist("The tracker", self.deadline, safe_url("SOURCE", url), headers, body)
        if status == 200 or (status == 404 and after_last):
            return status, found, text
        said = self.without_secrets(SPACES.sub(" ", text.decode(errors="replace")).strip())
        said = f" ({said[:200]})" if said and not said.startswith("<") else ""
        if status in (401, 403):
            ways = "SOURCE_TOKEN (for some with SOURCE_ACCOUNT), or for an address SOURCE_AUTHORIZATION,"
            raise Stop(DENIED, f"The tracker answered {status}{said}. {ways} must let this job in.")
        raise Stop(NO_INPUT, f"The tracker answered {status}, not data.{said}")

    def without_secrets(self, text: str) -> str:
        """What a tracker says, which may repeat what it was sent."""
        for secret in (part for value in self.headers.values() for part in value.split()[-1:]):
            with contextlib.suppress(ValueError):  # what is no Basic authorization
                inside = base64.b64decode(secret, validate=True).decode().partition(":")[0]
                text = text.replace(inside or secret, "***")
            text = text.replace(secret, "***")
        return text

    def rows(self, path: str, period: Object | None = None) -> Json:
        """All pages of an answer -> its rows, or the bytes of an answer that is not JSON.

        {page} and {offset} in the path count up until a page adds nothing; else the next page is the one that the
        answer names. A `period` is POSTed. :raise Stop: it cannot be had, or says itself that it is not whole
        """
        counts, url, said = "{page}" in path or "{offset}" in path, "", dict[str, Json]()
        rows, asked, seen = list[Json](), list[object](), collections.Counter[str]()
        while True:
            here = url or self.base + path.replace("{page}", str(len(asked) + 1)).replace("{offset}", str(len(rows)))
            if (here, period) in asked:
                raise Stop(NO_INPUT, "The tracker's pages lead in a circle; nothing of it was uploaded.")
            asked.append((here, period))
            status, found, sent = self.ask(here, json.dumps(period).encode() if period else None, len(asked) > 1)
            if status == 404:
                break
            data = as_json(sent.decode("utf-8-sig", "surrogateescape"))
            said = beside(data, found)
            url, cursor = next_page(said, here), period and said.get("x-next-row-number")
            if data is None and (len(asked) > 1 or counts or url):
                says = "The tracker's answer may have several pages, and not all are JSON; nothing of it was uploaded."
                raise Stop(NO_INPUT, says)
            if data is None:
                return sent
            new = unseen(listed(data), seen)
            rows += new
            if period and cursor:
                with or_stop(NO_INPUT, "The tracker names a next page by no number.", ValueError):
                    period = {**period, "first_row_number": int(cursor)}
            elif not url and not (counts and new):
                break
        if lacking := unfinished(said, len(rows), len(asked)):
            hint = "" if counts else " If it counts its pages, add {page} to the address, such as &page={page}."
            raise Stop(NO_INPUT, f"The tracker's answer is only a part: {lacking}. Nothing of it was uploaded.{hint}")
        return rows

    def entries(self, path: str, fill: Object, first: date, last: date, cap: int = 0) -> Json:
        """The rows of these days; in shorter spans from a tracker that tells no more than `cap` at once."""
        filled = path
        for place, value in {**fill, "from": first, "last": last, "to": last + timedelta(days=1)}.items():
            filled = filled.replace(f"{{{place}}}", str(value))
        posted = urllib.parse.urlsplit(self.base + filled).path.endswith(BY_PERIOD)
        period = {"start_date": str(first), "end_date": str(last), "page_size": 50}
        period |= {"enrich_response": True, "rounding": 0}  # names beside the ids, and durations that nobody rounded
        found = self.rows(filled, period if posted else None)
        if not cap or len(found) < cap:
            return found
        if first == last:
            raise Stop(NO_INPUT, f"The tracker tells no more than {cap} entries, and {first} may have more.")
        middle = first + (last - first) // 2
        spans = (first, middle), (middle + timedelta(days=1), last)
        return [row for span in spans for row in self.entries(path, fill, *span, cap)]


def unseen(page: list[Json], seen: collections.Counter[str]) -> list[Json]:
    """What a page has that no earlier one had. A row that is added while we page moves another one to the next page,
    where it comes again; equal rows of one page are honest.
    """
    here, new = collections.Counter[str](), []
    for row in page:
        written = json.dumps(row, sort_keys=True)
        here[written] += 1
        new += [row] if here[written] > seen[written] else []
    seen |= here
    return new


def read_headers(name: str, text: str) -> dict[str, str]:
    """`Name: value` pairs with semicolons between; a lone value such as `Bearer TOKEN` is Authorization's."""
    if not (text.isascii() and text.isprintable()):
        raise Stop(CONFIG, f"{name} holds a line break or another character that no header can.")
    pairs = [re.fullmatch(r"\s*([\w-]+): +(\S.*?)\s*", part) for part in re.split(r";(?=\s*[\w-]+: )", text) if text]
    if all(pairs):
        return {pair[1]: pair[2] for pair in pairs if pair}
    if not re.fullmatch(r"[\w-]+ +\S.*", text):
        says = "Toggl's TOKEN:api_token goes into SOURCE_TOKEN, with `toggl` as SOURCE."
        raise Stop(CONFIG, f"{name} must be `Bearer TOKEN`, `Basic BASE64` or `Name: value; Name: value`. {says}")
    return {"Authorization": text}


def from_address(address: str, env: Headers, options: argparse.Namespace, deadline: float) -> Iterable[Row]:
    """Rows of any address; {from} and {to} in it are the first day and the one after the last."""
    web = Web("", read_headers("SOURCE_AUTHORIZATION", env.get("SOURCE_AUTHORIZATION", "").strip()), deadline)
    first, last = map(date.fromisoformat, options.window or window_of(options))
    found = web.entries(address, {}, first, last)
    return read_file(found, options) if isinstance(found, bytes) else read_json(found, options)


def from_tracker(name: str, env: Headers, options: argparse.Namespace, deadline: float) -> Iterable[Row]:
    """Rows of a tracker that is asked by name: those of the window, and of a day more on both sides, because a day
    begins at another time elsewhere. :raise Stop: a setting lacks, or the answer cannot be had whole
    """
    tracker = TRACKERS[name]
    given = {what: env.get(f"SOURCE_{what}", "").strip() for what in ("TOKEN", "ACCOUNT", "URL")}
    given["URL"] = given["URL"] or tracker.base
    if lacking := [f"SOURCE_{what}" for what in tracker.needs.split() if not given[what]]:
        raise Stop(CONFIG, f"{name} needs {' and '.join(lacking)}; docs/trackers.md says where to find it.")
    given["TOKEN"] = given["TOKEN"].removesuffix(":api_token")
    given["BASIC"] = base64.b64encode(f"{given['TOKEN']}:api_token".encode()).decode()
    headers = read_headers("SOURCE_TOKEN", tracker.headers.format_map(given))
    web, zone = Web(safe_url("SOURCE_URL", given["URL"]).rstrip("/"), headers, deadline), options.zone
    with or_stop(NO_INPUT, f"{name} answers strangely; is SOURCE_URL right?", *ODD):
        who: Object = flat(json.loads(web.ask(web.base + tracker.who)[2])) if tracker.who else {}
        who = {column.removeprefix("data."): value for column, value in who.items()}
        told: Told = {"user": {str(who.get("id")): who.get("email") or who.get("name") or ""}}
        fill = {"account": given["ACCOUNT"] or who.get("activeWorkspace"), "id": who.get("id")}
        if name == "solidtime":
            fill, told = solidtime(web, given["ACCOUNT"], told)
    with contextlib.suppress(ValueError):
        zone = zone or read_zone(str(who.get("timezone") or who.get("settings.timeZone")))
    first, last = (date.fromisoformat(day) for day in options.window)
    found = web.entries(tracker.path, fill, first - timedelta(days=1), last + timedelta(days=1), tracker.cap)
    if isinstance(found, bytes):
        raise Stop(NO_INPUT, f"{name} answered no JSON; is SOURCE_URL right?")
    return read_json(found, options, zone=zone, told=told)


def solidtime(web: Web, account: str, told: Told) -> tuple[Object, Told]:
    """The organisation that is asked, and the names of its projects and members -> (fill, told).

    Whoever may not see the members may see their own entries only. :raise Stop: which organisation cannot be told
    """
    mine = {place["organization"]["id"]: place for place in web.rows("/api/v1/users/me/memberships")}
    account = account or (next(iter(mine)) if len(mine) == 1 else "")
    if account not in mine:
        names = ", ".join(f"{place} ({mine[place]['organization']['name']})" for place in mine)
        raise Stop(CONFIG, f"SOURCE_ACCOUNT must be an organisation of this token's person: {names}.")
    here, member = f"/api/v1/organizations/{account}", ""
    projects = {place["id"]: place["name"] for place in web.rows(here + "/projects?archived=all&page={page}")}
    try:
        members = web.rows(here + "/members?page={page}")
        told = {"user": {member["user_id"]: member.get("email") or member["name"] for member in members}}
    except Stop as stop:
        if stop.status != DENIED:
            raise
        member = f"&member_id={mine[account]['id']}"
    return {"account": account, "member": member}, {**told, "project": projects}


# ---- Token: the client-credentials grant (RFC 6749 section 4.4), kept until it expires ----

# The secret goes to the issuer and to nobody else, in the body of a request, where no log and no process list shows it.
# What comes back is a token for the API, good for a day. Whoever reads it can use it, so it is kept in a file that only
# this user can read; and it is kept, because the issuer bills each one: every 15 minutes makes 2,880 a month, or 30.

NEEDED = ("AUTH0_DOMAIN", "AUTH0_AUDIENCE", "AUTH0_CLIENT_ID", "AUTH0_CLIENT_SECRET", "TIMESHEETS_URL")
OTHERS = ("TOKEN_URL", "TOKEN_SCOPE", "TOKEN_RESOURCE")  # for issuers that are not Auth0
SETTING = re.compile(
    r"""(?:export\s+)?([A-Za-z_]\w*)\s*=\s*(?:"([^"]*)"|'([^']*)'|(.*?))\s*(?:(?<=\s)\#.*)?""", re.ASCII
)
Settings = dict[str, str]


def read_settings(env: Headers) -> Settings:
    """The five settings, and the three for other issuers. :raise Stop: all that is missing, in one sentence."""
    settings = {name: env.get(name, "").strip() for name in NEEDED + OTHERS}
    if env.get("AUTH0_CLIENT_SECRET_FILE") and not settings["AUTH0_CLIENT_SECRET"]:
        settings["AUTH0_CLIENT_SECRET"] = private_text(env["AUTH0_CLIENT_SECRET_FILE"], mounted=True).strip()
    if missing := [name for name in NEEDED if not settings[name]]:
        where = "They come from the environment or --env-file; docs/auth0.md says where to find each."
        raise Stop(CONFIG, f"Missing: {', '.join(missing)}. {where}")
    if not settings["AUTH0_CLIENT_SECRET"].isprintable():
        raise Stop(
            CONFIG, "AUTH0_CLIENT_SECRET holds a line break or another character that no secret has; copy it again."
        )
    domain = settings["AUTH0_DOMAIN"]
    issuer = safe_url("AUTH0_DOMAIN", domain if "://" in domain else f"https://{domain}/").rstrip("/")
    settings["TOKEN_URL"] = safe_url("TOKEN_URL", settings["TOKEN_URL"] or issuer + "/oauth/token")
    settings["api"] = safe_url("TIMESHEETS_URL", settings["TIMESHEETS_URL"]).rstrip("/")
    return settings


def private_text(path: str, mounted: bool = False) -> str:
    """A file that holds a secret. :raise Stop: it cannot be read, or others can read it too.

    A secret that a container has mounted (Docker: mode 0444) is the container's own, and nobody can write it.
    """
    with or_stop(CONFIG, f"{path} cannot be read:", OSError, UnicodeDecodeError):
        mode = os.stat(path).st_mode if os.name == "posix" else 0
        if mode & 0o077 and not (mounted and not mode & 0o222):
            raise Stop(CONFIG, f"{path} can be read by others. It holds a secret: chmod 600 {path}")
        return pathlib.Path(path).read_text(encoding="utf-8-sig")


def read_env_file(path: str) -> Settings:
    """NAME=VALUE lines as people write them: with `export`, quotes around a value, a `# comment` behind it."""
    env = {}
    if not os.path.exists(path):
        raise Stop(
            CONFIG, f"{path} is not there. It holds a line NAME=VALUE for each of {', '.join(NEEDED)}; chmod 600."
        )
    for number, line in enumerate(map(str.strip, private_text(path).splitlines()), start=1):
        match = SETTING.fullmatch(line)
        if match:
            env[match[1]] = next((value for value in match.groups()[1:] if value is not None), "")
        elif line and not line.startswith("#"):
            raise Stop(CONFIG, f"{path}, line {number}: expected NAME=VALUE.")
    return env


def token_request(settings: Settings) -> tuple[str, bytes]:
    """Build the request for a token -> (address, body); the secret goes into its body and nowhere else.

    Auth0 goes by `audience`; others ignore that (RFC 6749 section 3.2) and go by `scope` or `resource` (RFC 8707).
    """
    form = {"grant_type": "client_credentials", "client_id": settings["AUTH0_CLIENT_ID"]}
    form |= {"client_secret": settings["AUTH0_CLIENT_SECRET"], "audience": settings["AUTH0_AUDIENCE"]}
    form |= {"scope": settings["TOKEN_SCOPE"], "resource": settings["TOKEN_RESOURCE"]}
    form = {name: value for name, value in form.items() if value}  # some refuse `resource` as such
    return settings["TOKEN_URL"], urllib.parse.urlencode(form).encode()


ADD_SCOPE = (
    "Add batch:upload to the application's grant: Auth0 dashboard > Applications > APIs > the Timesheets API > "
    "Application Access > this application."
)
NOT_AUTH0 = "If the issuer is not Auth0: TOKEN_URL, TOKEN_SCOPE and TOKEN_RESOURCE say what its token endpoint wants."
REFUSALS = [  # what `STATUS error: description` of the token endpoint is searched for, and what it usually means
    ("^401", "The issuer does not accept AUTH0_CLIENT_ID with its secret. Was the secret rotated?"),
    ("Service not found", "The issuer has no API with the identifier {}. AUTH0_AUDIENCE must match one."),
    ("client-grant|not authorized", "This application may not ask for tokens for {}. " + ADD_SCOPE),
    (
        "^404|^... invalid_(request|scope|target|resource):",
        "The issuer does not understand the request for a token ({status}). " + NOT_AUTH0,
    ),
    ("", "The issuer refused a token ({status}). Is the client-credentials grant on for this application?"),
]


def read_token(status: int, body: bytes, settings: Settings) -> tuple[str, float]:
    """Judge the answer to `token_request` -> (token, the time it expires, in seconds since 1970).

    RFC 6749 section 5. Does not check the signature: that is the API's business, to which the token goes unread.
    :raise Stop: what is wrong, what it usually means, and what to do about it.
    """
    says = f"The token endpoint answered {status} and no JSON; is AUTH0_DOMAIN right? {NOT_AUTH0}"
    with or_stop(DENIED, says, ValueError):
        answer = json.loads(body)
        if not isinstance(answer, dict):
            raise ValueError
    if status != 200:
        said = f"{status} {answer.get('error')}: {answer.get('error_description')}"
        means = next(means for pattern, means in REFUSALS if re.search(pattern, said))
        raise Stop(DENIED, means.format(settings["AUTH0_AUDIENCE"], status=status))
    token, lifetime = answer.get("access_token"), answer.get("expires_in")
    if not isinstance(token, str) or str(answer.get("token_type")).lower() != "bearer":
        raise Stop(DENIED, "The token endpoint answered without a bearer token; is AUTH0_DOMAIN an Auth0 tenant's?")
    if token.count(".") != 2:
        says = "The issuer gave an opaque token, so it does not know the audience; is AUTH0_AUDIENCE right?"
        raise Stop(CONFIG, f"{says} {NOT_AUTH0}")
    if "batch:upload" not in str(answer.get("scope", "batch:upload")).split(" "):
        raise Stop(DENIED, f"The token does not permit uploads. {ADD_SCOPE}")
    return token, clock() + (lifetime if isinstance(lifetime, (int, float)) else 0)


def kept_in(folder: str, kind: str, *about: object) -> str:
    """The file in which something is kept, named after what it is about, so that two jobs may share a folder."""
    named = json.dumps(about, default=str)
    return os.path.join(folder, f"{kind}-{hashlib.sha256(named.encode()).hexdigest()[:16]}.json")


def recall(path: str, what: str) -> Object:
    """What `keep` wrote; nothing if it wrote none, or with a warning if it is broken or others can read it."""
    if os.path.exists(path):
        with contextlib.suppress(Stop, ValueError, TypeError):
            return dict(json.loads(private_text(path)))
        log.warning("%s is no private file with %s in it; a new one is made", path, what)
    return {}


def keep(path: str, what: Object) -> None:
    """Write a private file whole or not at all: mode 0600 from the start, then a rename. :raise OSError: not at all."""
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path))
    try:
        with open(handle, "w", encoding="utf-8") as file:
            json.dump(what, file)
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def get_token(settings: Settings, folder: str, deadline: float, fresh: bool = False) -> tuple[str, bool]:
    """A token that was kept, or a new one when that has less than a minute left, or when `fresh` asks for one
    -> (token, whether it is new). It is known by whom was asked, by which client, for what.
    """
    path = kept_in(folder, "token", *(settings[name] for name in ("AUTH0_CLIENT_ID", "AUTH0_AUDIENCE", *OTHERS)))
    kept = {} if fresh else recall(path, "a token")
    if kept.get("expires", 0) - 60 > clock():
        return str(kept["token"]), False
    url, form = token_request(settings)
    status, _, body = persist("The token endpoint", deadline, url, {}, form)
    token, expires = read_token(status, body, settings)
    log.info("token ok, good for %.0f minutes", (expires - clock()) / 60)
    try:
        keep(path, {"token": token, "expires": expires})
    except OSError as fault:
        log.error("%s cannot be written (%s), so each run asks the issuer for a new token", path, fault.strerror)
    return token, True


# ---- Applying: chunks of changes, each judged by the API ----

# The API answers a chunk with one result a row, after it is on disk. If this job or the API is killed at any moment,
# the next run compares anew and does what is left.


class Api:
    """The Timesheets API as this job sees it."""

    def __init__(self, settings: Settings, folder: str, deadline: float) -> None:
        self.settings, self.folder, self.deadline = settings, folder, deadline
        self.token, self.new = get_token(settings, folder, deadline)

    def call(self, path: str, body: bytes | None = None) -> tuple[int, Headers, Json]:
        """(status, headers, JSON). A kept token that is refused is dropped and fetched once more.

        :raise Stop: the API took neither token, or answered no JSON
        """
        while True:
            headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
            url = self.settings["api"] + path
            status, found, text = persist("The Timesheets API", self.deadline, url, headers, body)
            if status != 401 or self.new:
                break
            self.token, self.new = get_token(self.settings, self.folder, self.deadline, fresh=True)
        if status == 413:  # perhaps a proxy's, in HTML
            return status, found, None
        with or_stop(CONFIG, f"The Timesheets API answered {status} and no JSON; is TIMESHEETS_URL right?", ValueError):
            answer = json.loads(text)
        if status == 200:
            return status, found, answer
        detail = answer.get("detail", "") if isinstance(answer, dict) else ""
        if status == 401:
            says = (
                "Do AUTH0_DOMAIN and AUTH0_AUDIENCE match the API's? The API's log says what is wrong with the token,"
            )
            raise Stop(DENIED, f"The API does not accept the issuer's token. {says} as does `timesheets.py explain`.")
        if status == 403:
            raise Stop(DENIED, f"The API says: {detail} {ADD_SCOPE}")
        hint = " Is TIMESHEETS_URL right? It is the API's own address, without /timesheets." if status == 404 else ""
        raise Stop(CONFIG, f"The API answered {status}: {detail}{hint}")

    def upload(self, rows: list[Object], dry_run: bool) -> list[tuple[str, str]]:
        """Upload rows in chunks -> (status, why it was rejected) of each, in order.

        A chunk that is too large for the API (413) is halved. :raise Stop: 70, a row got no result.
        """
        results, size, query = list[tuple[str, str]](), 1000, "?dry_run=1" if dry_run else ""
        while chunk := rows[len(results) : len(results) + size]:
            status, _, answer = self.call("/timesheets/upload" + query, json.dumps(chunk).encode())
            if status == 413 and len(chunk) > 1:
                size = (len(chunk) + 1) // 2
                continue
            found = answer.get("results") if isinstance(answer, dict) else None
            if found is None or [result.get("index") for result in found] != list(range(len(chunk))):
                says = "run again with -v and tell its makers."
                raise Stop(SOFTWARE, f"The API's answer does not account for every row; {says}")
            for result in found:
                why = (f"{error['field']} {error['detail']}".strip() for error in result.get("errors") or ())
                results.append((result["status"], "; ".join(why)))
        return results

    def held(self, first: str, last: str) -> list[Entry]:
        """This source's live entries in the window, read page by page."""
        path, held = f"/timesheets/upload?limit=1000&from={first}&to={last}", list[Entry]()
        says = "The API's list of entries is not as expected; tell its makers."
        with or_stop(SOFTWARE, says, LookupError, TypeError):
            while path:
                _, headers, entries = self.call(path)
                held += map(held_entry, entries)
                query = urllib.parse.urlsplit(linked(headers)).query  # the path is ours, whatever stands before the API
                path = f"/timesheets/upload?{query}" if query else ""
        return held


def held_entry(said: Object) -> Entry:
    """An entry as the API lists it. A key without the tracker's id tells the person, as the export writes it."""
    key, worked = said["external_id"], round(said["hours"] * 3600)
    person = re.fullmatch(r"[^:]+:(.*):\d{4}-\d\d-\d\d:\d+", key)
    place = said["user_id"], said["date"], said["project"]
    return Entry(key, person[1] if person else "", *place, worked, said["description"], bool(said["approved"]))


def apply(api: Api, changes: list[Change], dry_run: bool) -> Iterator[tuple[Change, str, str]]:
    """Carry out a plan, or ask what would come of it -> yields (change, status, why) of each step that is sent.

    Deletions go first: a row that takes the place of another entry is sent only if that one could go.
    """
    goes = [(change, change.old.key if change.old else change.key) for change in changes if change.sign in "-~"]
    goes = [(change, key) for change, key in goes if change.sign == "-" or key != change.key]
    results = api.upload([{"external_id": key, "deleted": True} for _, key in goes], dry_run)
    stays = {key for (_, key), (status, _) in zip(goes, results) if status == "rejected"}
    for (change, key), result in zip(goes, results):
        if change.sign == "-" or key in stays:
            yield change, *result
    sent = [change for change in changes if change.sign in "+~" and not (change.old and change.old.key in stays)]
    for change, (status, why) in zip(sent, api.upload([uploaded(change) for change in sent], dry_run)):
        yield change, "updated" if change.old and status == "created" else status, why


def uploaded(change: Change) -> Object:
    """The entry of a step as the API takes it."""
    row, worked = change.row, round(change.row.seconds / 3600, 4)
    return {
        "external_id": change.key, "user_id": row.user, "date": row.day, "project": row.project, "hours": worked,
        "description": row.note,
    }  # fmt: skip


# ---- The run: read, plan, apply, account ----

# Every row that was read ends as exactly one of these, or the run ends with 70: better a false alarm than lost hours.
OUTCOMES = ("created", "updated", "unchanged", "rejected", "skipped")


def run(options: argparse.Namespace) -> int:
    """The whole job -> the exit status."""
    export, deadline = Export(options), clock() + DEADLINE
    if not options.print:
        options.state = state_folder(options)
    env = environment(options)
    settings = {} if options.print else read_settings(env)
    with reporting(export), contextlib.nullcontext() if options.print else only_one(options.state):
        read(export, env, deadline)
        if options.print:
            show(export)
        else:
            bring(export, Api(settings, options.state, deadline))
            account(export)
    return REJECTED if export.rejects else OK


def read(export: Export, env: Headers, deadline: float) -> None:
    """Take the rows of all sources: a tracker, addresses, files or standard input. :raise Stop: one cannot be read."""
    for source in export.options.source:
        if source in TRACKERS:
            rows = from_tracker(source, env, export.options, deadline)
        elif "://" in source:
            rows = from_address(source, env, export.options, deadline)
        else:
            with or_stop(NO_INPUT, f"{source} cannot be read:", OSError):
                content = sys.stdin.buffer.read() if source == "-" else pathlib.Path(source).read_bytes()
            rows = read_file(content, export.options)
        export.take(rows)
    log.info("read %s", many(export.read, "row"))


def show(export: Export) -> None:
    """Print the entries as they would be named."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # JSON is UTF-8 wherever it is printed
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    written = json.JSONEncoder(ensure_ascii=False).encode
    changes = match([row for row in export.rows if row.seconds], [], set(), export.feed)
    sys.stdout.writelines(written(uploaded(change)) + "\n" for change in changes)
    complain(export)


def complain(export: Export) -> None:
    """Say which rows were rejected, and why."""
    for reject in export.rejects:
        log.error("line %s: %s", reject.line, reject.fault)
        log.info("    %s", ", ".join(map(str, reject.cells.values())))


def bring(export: Export, api: Api) -> None:
    """Compare with what the API holds, make the plan, check it, apply it."""
    rows, options, counts = export.rows, export.options, export.counts
    days = [row.day for row in rows if row.day] + list(options.window if options.covers else ())
    keys, feed = {row.key for row in rows} - {""}, f"{export.feed}:"
    own = any(":" not in key for key in keys)  # of an input's own making, so they name no feed
    held = [
        entry
        for entry in (api.held(min(days), max(days)) if days else ())
        if entry.key.startswith(feed) or entry.key in keys or feed == ":" or (own and ":" not in entry.key)
    ]
    covered = export.covered(held)
    changes = match(rows, held, covered, export.feed)
    guard(changes, rows, held, covered, options)
    if held and not rows:
        log.error("The input is empty, so nothing is deleted; of its days the API holds %s.", many(len(held), "entry"))
    counts["skipped"] += sum(not row.seconds and not row.fault for row in rows)
    counts["unchanged"] += sum(change.sign == "=" for change in changes)
    says = "an approved entry stays as it is until its approval is taken back; this row says"
    kept = [(c, "rejected", f"{says}: {in_a_line(c._replace(sign=''))}") for c in changes if c.sign == "!"]
    for change, status, why in itertools.chain(kept, apply(api, changes, options.dry_run)):
        if options.dry_run and status != "unchanged":
            print(f"{in_a_line(change._replace(sign='!'))}: {why}" if status == "rejected" else in_a_line(change))
        if status != "rejected":
            counts[status] += change.sign != "-" or status == "deleted"
        elif change.row and change.row.seconds:
            export.rejects.append(change.row._replace(fault=why))
        elif change.old:
            log.error("%s of %s is gone upstream but approved, so it stays", change.old.key, change.old.day)


def account(export: Export) -> None:
    """Say what happened. :raise Stop: 70, the outcomes do not add up to the rows read."""
    complain(export)
    counts = export.counts + collections.Counter(rejected=len(export.rejects))
    if sum(counts[outcome] for outcome in OUTCOMES) != export.read:
        raise Stop(SOFTWARE, f"{many(export.read, 'row')} read, but these accounted for: {dict(counts)}.")
    said = ", ".join(f"{counts[outcome]} {outcome}" for outcome in (*OUTCOMES, "deleted") if counts[outcome])
    changed = counts["created"] + counts["updated"] + counts["deleted"]
    level, dry = logging.WARNING if changed or sys.stderr.isatty() else logging.INFO, export.options.dry_run
    log.log(level, f"{'dry run: ' if dry else ''}{many(export.read, 'row')}: {said or 'nothing to do'}")


@contextlib.contextmanager
def only_one(folder: str) -> Iterator[None]:
    """A lock per state directory, which the system frees when this process ends, however it ends. :raise Stop: 75.

    Windows has no such lock; there the API alone sees to it that two runs at once double nothing.
    """
    with open(os.path.join(folder, "lock"), "a+") as file:
        with or_stop(LATER, "Another run is under way in this state directory; this one leaves.", OSError):
            if sys.platform != "win32":
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def state_folder(options: argparse.Namespace) -> str:
    """Where token, lock and the last trouble are kept, for this user only. :raise Stop: it cannot be made."""
    with or_stop(CONFIG, "Nothing can be kept; --state-dir DIR names another place:", OSError, RuntimeError):
        home = os.environ.get("XDG_STATE_HOME") or os.environ.get("LOCALAPPDATA")
        folder = options.state_dir or os.path.join(home or pathlib.Path.home() / ".local/state", "timesheets-sync")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    return str(folder)


def environment(options: argparse.Namespace) -> Headers:
    """The env file and the environment, which wins; urllib finds proxies and certificate files there, too."""
    env = {**(read_env_file(options.env_file) if options.env_file else {}), **os.environ}
    for name, value in env.items():
        if name.casefold().endswith("_proxy") or name.startswith("SSL_CERT_"):
            os.environ[name] = value
    return env


@contextlib.contextmanager
def reporting(export: Export) -> Iterator[None]:
    """Write the rejects at the end, however that comes, as CSV for people: line, reason, and the row's own columns.

    :raise Stop: the file cannot be written, or is what is about to be read
    """
    path = export.options.rejects
    if not path:
        yield
        return
    with or_stop(USAGE, f"{path} cannot be written:", OSError):
        sources = filter(os.path.exists, export.options.source)
        if os.path.exists(path) and any(os.path.samefile(path, source) for source in sources):
            raise Stop(USAGE, f"--rejects {path} would overwrite the source; name another file.")
        file = open(path, "w", newline="", encoding="utf-8", errors="backslashreplace")
    with file:
        try:
            yield
        finally:
            cells = (cell for reject in export.rejects for cell in reject.cells.items())
            columns = list(dict.fromkeys(name for name, cell in cells if cell is not None))
            written = csv.writer(file)
            written.writerow(["line", "reason", *columns])
            for reject in export.rejects:
                written.writerow([reject.line, reject.fault, *map(reject.cells.get, columns)])


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{message}; --help says more\n")


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line. :raise SystemExit, Stop: 64 and a sentence, it cannot be understood."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    example, statuses = rest.partition("\n\n")[2].partition("\n\n")[0], rest.partition("Exit status: ")[2]
    parser = Parser(
        usage=f"sync.py [options] SOURCE...\n\n{example}", description=summary,
        epilog=f"Exit status: {' '.join(statuses.split())}",
    )  # fmt: skip
    add, formats = parser.add_argument, ", ".join(form.name for form in FORMATS)
    # fmt: off
    add("source", nargs="+", metavar="SOURCE", help=f"a file; - for standard input; a tracker that is asked by name "
        f"({', '.join(TRACKERS)}), with SOURCE_TOKEN; or an https:// address in which {{from}}, {{to}}, {{page}}, "
        "{offset} are filled, with SOURCE_AUTHORIZATION (`Bearer TOKEN`, or `Name: value; Name: value`)")
    add("--feed", metavar="NAME", help="what keys begin with (default: the tracker); two exports of one person that "
        "each hold a part, such as two workspaces, are two feeds")
    add("--names", dest="names_file", metavar="FILE", help="CSV with the columns what (user or project), from (in the "
        "tracker) and to (in the API; empty: leave out)")
    add("--user", type=str.strip, metavar="EMAIL", help="whose rows these are, for one person's export")
    add("--project", type=str.strip, metavar="NAME", help="the project of all rows, for exports that do not say")
    add("--tz", metavar="ZONE", help="where the person works, if neither row nor tracker says: Europe/Berlin")
    add("--format", default="auto", help=f"the export's format, if it cannot be told: {formats}")
    add("--map", metavar="ROLE=COLUMN,...", help=f"which column is what, in other inputs; roles: {', '.join(ROLES)}")
    add("--date-format", choices=sorted(ORDERS), help="the order in 03/04/2026, if no date in the input proves it")
    add("--since", metavar="35d", help="take no day before; a number of days or a date (default of a tracker that is "
        "asked: 35d)")
    add("--snapshot", metavar="FROM..TO", help="the input is all of these days: what it lacks there is deleted")
    add("--add-only", action="store_true", help="delete nothing")
    add("--max-delete", type=int, metavar="N", help="how many deletions, moves to another person and rewritten entries "
        "are meant (default: 5, or 10 %% if more)")
    add("--dry-run", action="store_true", help="show the plan and what the API says to it (+ create, ~ update, "
        "- delete, ! refused), and store nothing")
    add("--print", action="store_true", help="print the entries as they would be named; no network, no settings")
    add("--rejects", metavar="FILE", help="write rejected rows there, as CSV with line and reason")
    add("--env-file", metavar="FILE", help="NAME=VALUE lines for what the environment does not say; chmod 600")
    add("--state-dir", metavar="DIR", help="where token and lock are kept (default: ~/.local/state/timesheets-sync)")
    add("-v", "--verbose", action="store_true", help="tell each stage")
    add("-q", "--quiet", action="store_true", help="tell failures only")
    add("--version", action="version", version=VERSION)
    # fmt: on
    return read_options(parser.parse_args(arguments))


def read_options(options: argparse.Namespace) -> argparse.Namespace:
    """The options that are more than text: --tz, the window in days, --map as {role: column}, --names."""
    with or_stop(USAGE, "--tz:", ValueError):
        options.zone = read_zone(options.tz) if options.tz else None
    by_name = options.source[0] in TRACKERS
    if by_name:
        options.format, options.map = TRACKERS[options.source[0]].form, None
        options.feed = options.feed or options.format.partition("-")[0]
    if len(options.source) > 1 and TRACKERS.keys() & set(options.source):
        raise Stop(USAGE, "A tracker that is asked by name is the only SOURCE of a run; ./NAME would be a file.")
    if options.feed and not re.fullmatch(r"[\w.-]{1,40}", options.feed):
        raise Stop(USAGE, f"--feed {options.feed} must be 1 to 40 letters, digits, points or hyphens.")
    options.covers, options.state = bool(options.snapshot) or by_name, ""
    options.window = window_of(options) if options.covers or options.since else None
    if options.map:
        says = f"--map must be ROLE=COLUMN with commas between; roles are {', '.join(ROLES)}."
        pairs = [part.partition("=") for part in re.split(rf",(?=\s*(?:{'|'.join(ROLES)})\s*=)", options.map)]
        options.map = {role.strip(): column.strip().strip("\"'") for role, _, column in pairs}
        strange = [column for column in options.map.values() if not column or re.search(r",\s*\w+\s*=", column)]
        if strange or options.map.keys() - set(ROLES) or len(options.map.keys() & UNITS) > 1:
            raise Stop(USAGE, f"{says} Of {', '.join(UNITS)} it names one.")
        options.map = {"user" if role == "user_id" else role: column for role, column in options.map.items()}
    options.names = read_names(options.names_file or "")
    return options


def window_of(options: argparse.Namespace) -> tuple[str, str]:
    """The first and the last day of --snapshot, or of --since until today. :raise Stop: they cannot be understood."""
    if options.snapshot:
        says = f"{options.snapshot} must be two days in order, such as 2026-11-01..2026-11-30."
        with or_stop(USAGE, says, ValueError):
            first, last = (date.fromisoformat(day) for day in options.snapshot.split(".."))
            if first > last:
                raise ValueError
        return first.isoformat(), last.isoformat()
    today, since = datetime.fromtimestamp(clock(), options.zone).date(), options.since or "35d"
    with or_stop(USAGE, f"{since} is no number of days and no date; 35d or 2026-11-01 would be one.", ValueError):
        days = re.fullmatch(r"(\d{1,4})d?", since)
        first = today - timedelta(days=int(days[1])) if days else date.fromisoformat(since)
    return first.isoformat(), today.isoformat()


def known_trouble(options: argparse.Namespace, trouble: str) -> bool:
    """Whether the last run in this state directory with these options said the same, less than a day ago.

    cron mails what is said; the same mail every hour is one that nobody reads.
    """
    path = kept_in(options.state, "said", options.source, options.feed, options.user, options.names_file)
    last = recall(path, "the last trouble")
    late = clock() - last.get("at", 0) > 85_000  # a day, but for a run that began late
    if trouble == last.get("trouble", "") and not (trouble and late):
        return True
    with contextlib.suppress(OSError):
        keep(path, {"trouble": trouble, "at": clock()})
    return False


GO_ON = "Run again to go on: what was uploaded is known and not sent twice."


def main(arguments: list[str] | None = None) -> int:
    """Run, and turn every ending into a sentence and an exit status."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # there is none after `>&-`
    screen = logging.StreamHandler(sys.stderr)
    said = logging.handlers.MemoryHandler(1_000_000, flushLevel=100, target=screen)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[said], force=True)
    options = argparse.Namespace(state="")
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as `timeout` and a shutdown send it
        options = parse_options(arguments)
        log.setLevel(logging.ERROR if options.quiet else logging.INFO if options.verbose else logging.WARNING)
        if options.verbose or sys.stderr.isatty():  # somebody looks: say everything, at once
            logging.getLogger().addHandler(screen)
            said.setTarget(None)
        status = run(options)
        sys.stdout.flush()
    except Stop as stop:
        status = stop.status
        log.error("%s", stop)
    except KeyboardInterrupt:
        status = LATER
        log.error("Stopped. %s", GO_ON)
    except OSError as fault:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be written on the way out
        enough = isinstance(fault, BrokenPipeError) and options.print and not options.rejects  # `| head`
        status = OK if enough else LATER
        if not enough:
            log.error("Stopped: %s. %s", fault, GO_ON)
    finally:
        trouble = [record for record in said.buffer if record.levelno >= logging.ERROR]
        if options.state and known_trouble(options, "\n".join(record.getMessage() for record in trouble)):
            said.buffer = [record for record in said.buffer if record not in trouble]
        said.flush()
    return status


if __name__ == "__main__":
    gc.disable()  # a run is short and makes no cycles, and looking for them takes a third of its time
    sys.exit(main())
