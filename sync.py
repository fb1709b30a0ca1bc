#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = []
# ///
"""Upload a time tracker's export to the Timesheets API: a cron job in one file, standard library only.

For contractors and whoever runs their cron: reads what Toggl, Clockify, Harvest, Kimai, solidtime, Tempo,
Timewarrior, Watson, timetrap and org-mode export, or any other CSV or JSON with --map; gets an access token with
the client-credentials grant; uploads. Running it again changes nothing, so after any failure: run it again.

    python sync.py --print export.csv                                    look first: no network, no settings
    python sync.py --env-file ~/.config/timesheets.env export.csv        upload

The env file (chmod 600) holds AUTH0_DOMAIN, AUTH0_AUDIENCE, AUTH0_CLIENT_ID, AUTH0_CLIENT_SECRET and
TIMESHEETS_URL, one NAME=VALUE a line; the environment says it too, and wins. Where the issuer is not Auth0, TOKEN_URL,
TOKEN_SCOPE and TOKEN_RESOURCE say what its token endpoint wants.

Words used below:

    format      one kind of export, one entry of the table FORMATS
    role        what a column is to us: id, user, project, date, time, start, end, duration, description ...
    row         one record of the input; it ends as an entry, a reject or a skip, and is counted
    key         what makes a row the same row on the next run; numbered, it is the entry's external_id
    chunk       the rows of one upload
    void        to mark an entry as deleted upstream

Exit status: 0 ok, 64 usage, 65 some rows rejected, 66 no readable input, 70 the accounting does not add up,
75 try again later, 77 not authorised, 78 configuration.
"""

import argparse
import collections
import contextlib
import csv
import email.utils
import functools
import hashlib
import http.client
import io
import itertools
import json
import logging
import os
import pathlib
import random
import re
import shutil
import socket
import ssl
import sys
import tempfile
import time
import typing
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
import zoneinfo
from datetime import date, datetime, timedelta, timezone

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

VERSION = "1.0"
OK, USAGE, REJECTED, NO_INPUT, SOFTWARE, LATER, DENIED, CONFIG = 0, 64, 65, 66, 70, 75, 77, 78
log = logging.getLogger("sync")
clock, sleep = time.time, time.sleep  # names of their own, so that a test can put in others


class Stop(Exception):
    """The end of the run: an exit status and a sentence for whoever reads the cron mail."""

    def __init__(self, status, sentence):
        super().__init__(sentence)
        self.status = status


@contextlib.contextmanager
def or_stop(status, sentence, *faults):
    """End the run with this sentence if one of `faults` happens; after a colon comes what the fault says."""
    try:
        yield
    except faults as fault:
        reason = getattr(fault, "strerror", None) or fault
        raise Stop(status, f"{sentence} {reason}." if sentence.endswith(":") else sentence) from None


class Unreadable(ValueError):
    """Why a row is no entry: the column at fault, and what is wrong with it."""


# ---- Values: days, times, numbers and durations as trackers write them ----

DATE = re.compile(r"(\d{1,4})([-/.])(\d{1,2})\2(\d{1,4})(?:[T ].*)?", re.ASCII)
TIME = re.compile(r"(\d{1,2}):([0-5]\d)(?::([0-5]\d))?(?:[.,]\d+)? ?(?:([ap])\.?m\.?)?", re.ASCII | re.IGNORECASE)
MOMENT = re.compile(
    r"(\d{4})-?(\d\d)-?(\d\d)[T ](\d\d):?(\d\d):?(\d\d)?(?:[.,]\d+)? ?(?:(Z)|([+-]\d\d):?(\d\d))?", re.ASCII
)
CLOCK = re.compile(r"(\d{1,4}):([0-5]\d)(?::([0-5]\d))?", re.ASCII)
PERIOD = re.compile(r"PT(?=\d)(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)(?:\.\d+)?S)?", re.ASCII)
PLAIN = re.compile(r"-?(?:\d+(?:[.,]\d*)?|[.,]\d+)", re.ASCII)
GROUPED = re.compile(r"-?\d{1,3}(?:(?:\.\d{3})+,|(?:,\d{3})+\.)\d*", re.ASCII)
HOURS, SECONDS = 3600, 1
ORDERS = {"YMD": (0, 1, 2), "DMY": (2, 1, 0), "MDY": (2, 0, 1)}


@functools.lru_cache(maxsize=4096)
def read_date(text, order=None):
    """A day as YYYY-MM-DD. A year in front or dots (26.01.2015) tell the order; 03/04/2024 needs to be told.

    `order` is YMD, DMY or MDY, None when nobody said and nothing proved it. :raise ValueError: what is wrong.
    """
    match = DATE.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is not a date")
    first, sign, *others = match.groups()
    if len(first) == 4:
        order = "YMD"
    elif sign == ".":
        order = "DMY"
    if order is None:
        raise ValueError(f"the date {text!r} can be read two ways; --date-format DMY or MDY says which")
    year, month, day = (int((first, *others)[place]) for place in ORDERS[order])
    try:
        return date(year, month, day).isoformat()
    except ValueError:
        raise ValueError(f"{text!r} is no date when read as {order}") from None


def prove_order(values):
    """DMY or MDY, if one of the dates proves it; None if the first one says its own. :raise Stop: both are possible."""
    doubtful = None
    for text in values:
        match = DATE.fullmatch(text)
        if match and len(match[1]) <= 2 and match[2] != ".":
            first, second = int(match[1]), int(match[3])
            if first > 12 or second > 12:
                return "DMY" if first > 12 else "MDY"
            doubtful = doubtful or (first != second and text)
        elif match and not doubtful:
            return None
    if doubtful:
        says = "and no date in the input proves which. Add --date-format DMY (day first) or --date-format MDY."
        raise Stop(USAGE, f"Dates such as {doubtful} can be read two ways, {says}")
    return "DMY"


@functools.lru_cache(maxsize=8192)
def read_time(text):
    """A time of day as HH:MM:SS, from 9:00, 09:00:00, 9:00 AM or 3:00pm."""
    match = TIME.fullmatch(text)
    if not match or int(match[1]) > 23 or (match[4] and not 1 <= int(match[1]) <= 12):
        raise ValueError(f"{text!r} is not a time of day")
    hour = int(match[1])
    if match[4]:
        hour = hour % 12 + (12 if match[4] in "pP" else 0)
    return f"{hour:02}:{match[2]}:{match[3] or '00'}"


def read_moment(text, zone):
    """A date and time as the person saw it. UTC does not tell where that was: `zone` must. :raise Stop: it does not."""
    match = MOMENT.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is not a date and time")
    year, month, day, hour, minute, second, utc, hours, minutes = match.groups()
    if not "1970" <= year < "3000":
        raise ValueError(f"{text!r} is no time at which somebody can have worked")
    offset = "+00:00" if utc else f"{hours}:{minutes}" if hours else ""
    moment = datetime.fromisoformat(f"{year}-{month}-{day}T{hour}:{minute}:{second or '00'}{offset}")
    if offset not in ("+00:00", "-00:00"):
        return moment
    if zone is None:
        says = "and the day depends on where the person works. Add --tz, for example --tz Europe/Berlin."
        raise Stop(USAGE, f"The times of this export are UTC ({text}), {says}")
    return moment.astimezone(zone)


@functools.lru_cache(maxsize=8192, typed=True)
def read_duration(written, unit):
    """Seconds from 1:30, 1:30:00, PT1H30M, or a number of `unit`; None for what is no duration in this format.

    A number has a point or a comma; where both stand the later one is the decimal sign: 2.000,5 is 2000.5.
    """
    if isinstance(written, str):
        match = CLOCK.fullmatch(written) or PERIOD.fullmatch(written)
        if match:
            hours, minutes, seconds = (int(part or 0) for part in match.groups())
            return hours * 3600 + minutes * 60 + seconds
        if GROUPED.fullmatch(written):
            written = written.replace("," if written.rfind(".") > written.rfind(",") else ".", "")
        elif not PLAIN.fullmatch(written):
            return None
        written = float(written.replace(",", "."))
    if not unit or isinstance(written, bool) or not abs(written) < 1e12:
        return None
    return round(written * unit)


def elapsed(start, end, zone):
    """Seconds between two moments, both with a zone or both without. With one, a night when the clocks change counts
    as long as it was.
    """
    if start.tzinfo is None:
        start, end = (moment.replace(tzinfo=zone or timezone.utc) for moment in (start, end))
    return round(end.timestamp() - start.timestamp())


# ---- Formats: one table; a further tracker is one more entry ----


class Format:
    """One kind of export.

    name        what --format takes; the part before a hyphen is the tracker, and begins every external_id
    kind        csv or json
    needs       the columns by which it is recognised, commas between; `A|B` is either, as in translations
    plain       the roles whose column is called as they are
    roles       role = column for the others; `A|B` takes the first that is filled; `a.b` is b inside a, as `flat` says
    unit        what a bare number in `duration` means: HOURS, SECONDS, or nothing we could trust (0)
    only        recognised only if no other column is there

    Roles that do not say it themselves: `running` is True or `current` while a timer runs (besides, an empty end says
    so in every format), `gone` is filled when the tracker deleted the row, `first_name` and `last_name` are the user
    where nothing else is, and `client` and `task` belong to the key where there is neither an id nor a start.
    """

    def __init__(self, name, kind, needs, plain="", unit=0, only="", **roles):
        self.name, self.kind, self.unit = name, kind, unit
        self.source = name.partition("-")[0]
        self.needs = [column.strip().split("|") for column in needs.split(",")]
        self.only = only and set(only.split(", "))
        self.roles = {role: [role] for role in plain.split(", ") if role}
        self.roles.update((role, columns.split("|")) for role, columns in roles.items())

    def missing(self, names):
        """What of `needs` is not among the column names."""
        there = {self.fold(name) for name in names}
        return ["|".join(column) for column in self.needs if not any(self.fold(choice) in there for choice in column)]

    def fold(self, column):
        """CSV headers are compared without regard to case."""
        return column.casefold() if self.kind == "csv" else column

    def bind(self, names):
        """The columns of each role, as this input writes them. JSON may leave out what is empty, so there all count."""
        if self.kind == "json":
            return self.roles
        written = {self.fold(name): name for name in reversed(names)}
        places = {
            role: [written[self.fold(column)] for column in columns if self.fold(column) in written]
            for role, columns in self.roles.items()
        }
        return {role: columns for role, columns in places.items() if columns}


FORMATS = [
    # Toggl. Its CSV has no ids, so the start is the key. Its API tells deletions, and a timer that runs by a negative
    # duration; a report's row holds the entries that were alike, each with an id of its own.
    Format("toggl", "csv", "Start date, Start time, Duration", "project, description, duration",
           user="Email|Member|User", date="Start date", time="Start time",
           end_date="End date|Stop date", end_time="End time|Stop time"),
    Format("toggl-api", "json", "id, start, duration, workspace_id|wid", "id, description, start, duration",
           unit=SECONDS, user="user_name|user_id|uid", project="project_name|project_id|pid", gone="server_deleted_at"),
    Format("toggl-reports", "json", "id, seconds, start, user_id|username", "id, description, start",
           unit=SECONDS, user="email|username|user_id", project="project_name|project_id", duration="seconds"),
    # Clockify. Dates and durations look as the workspace sets it: 1.50, 1:30 and 01:30:00 all stand in "Duration (h)".
    Format("clockify", "csv", "Start Date, Start Time, Duration (h)", "project, description",
           unit=HOURS, user="Email|User", date="Start Date", time="Start Time",
           end_date="End Date", end_time="End Time", duration="Duration (h)"),
    Format("clockify-api", "json", "timeInterval.start", "description",
           unit=SECONDS, id="id|_id", user="userEmail|user.email|userName|userId",
           project="projectName|project.name|projectId", start="timeInterval.start", end="timeInterval.end",
           duration="timeInterval.duration"),
    # Harvest. Its CSV has no ids and no times of day, so a row's own columns are its key, and equal rows are numbered.
    Format("harvest", "csv", "Date|Datum, Client|Kunde, Project|Projekt, Hours|Stunden",
           unit=HOURS, user="Email|E-Mail", first_name="First Name|Vorname", last_name="Last Name|Nachname",
           project="Project|Projekt", description="Notes|Notizen|Notiz", date="Date|Datum", duration="Hours|Stunden",
           client="Client|Kunde", task="Task|Aufgabe"),
    Format("harvest-api", "json", "id, spent_date, hours", "id",
           unit=HOURS, user="user.email|user.name|user.id", project="project.name|project.id", description="notes",
           date="spent_date", duration="hours", running="is_running"),
    # Kimai. Headers come translated, durations as 0:06 or 0.11; there is no end date: an earlier end is the next day's.
    Format("kimai", "csv", "Date|Datum, From|Von, To|Bis, Duration|Dauer, Project|Projekt", "id",
           unit=HOURS, user="E-mail|E-Mail|User|Benutzer|Name", project="Project|Projekt",
           description="Description|Beschreibung", date="Date|Datum", time="From|Von", end_time="To|Bis",
           duration="Duration|Dauer"),
    Format("kimai-api", "json", "id, begin, duration, activity|activity.id", "id, description, end, duration",
           unit=SECONDS, user="user.email|user.username|user.id|user", project="project.name|project.id|project",
           start="begin"),
    # solidtime. The detailed CSV is in the exporter's own time; the API and the ZIP are in UTC.
    Format("solidtime", "csv", "Start, End, Duration (decimal), Project",
           "user, project, description, start, end, duration"),
    Format("solidtime-zip", "csv", "id, description, start, end, organization_id|created_at",
           "id, description, start, end", user="user_id|member_id", project="project_id"),
    Format("solidtime-api", "json", "id, start, end, organization_id", "id, description, start, end, duration",
           unit=SECONDS, user="user_id", project="project_id"),
    # Tools of the command line, one person's each: --user says whose. Timewarrior's id is a position, and never a key.
    Format("timewarrior", "json", "start", "start, end", only="id, start, end, tags, annotation",
           project="tags", description="annotation"),
    Format("watson", "json", "id, project, start, stop, tags", "id, project, start", end="stop", running="id"),
    # This id is cut to 7 characters: no key.
    Format("watson-csv", "csv", "id, start, stop, project, tags", "project, start", end="stop"),
    Format("timetrap", "json", "id, sheet, start, end, note", "id, start, end", project="sheet", description="note"),
    Format("timetrap-csv", "csv", "start, end, note, sheet", "start, end", project="sheet", description="note"),
    Format("orgclock", "csv", "task, parents, category, start, end", "start, end",
           project="category", description="task"),
    # Tempo. Its worklogs have a day and a length; the time of day is no part of them.
    Format("tempo", "json", "tempoWorklogId, timeSpentSeconds, startDate", "description",
           unit=SECONDS, id="tempoWorklogId", user="author.emailAddress|author.accountId",
           project="issue.key|issue.id", date="startDate", duration="timeSpentSeconds"),
    Format("tempo-csv", "csv", "Issue Key, Hours, Work date",
           unit=HOURS, user="Email|Username|Full name", project="Project Name|Project Key|Issue Key",
           description="Work Description", date="Work date", duration="Hours", task="Issue Key"),
    # Anything else that names its columns as the API does; --map names those of the rest.
    *(Format(name, kind, "date, project, hours", "project, description, date, external_id",
             unit=HOURS, user="user_id", duration="hours")
      for name, kind in (("generic", "csv"), ("generic-json", "json"))),
]  # fmt: skip


# ---- Reading: a file becomes rows, a row becomes an entry ----

# CSV is read row by row and never as a whole: of a million rows only the keys are kept. Nothing is told from a file's
# name, and nothing that can be meant two ways is taken: a contractor is paid by what is read here. A row that cannot be
# read stops no other; it is counted, and reported with its line.

SPACES = re.compile(r"[\x00-\x20\x7f-\xa0]+")
UNDECODED = re.compile("[\udc80-\udcff]")
MORE = "(more cells than the header has)"
TOP = ("time_entries", "results", "data", "timeEntries")  # where APIs keep the list inside their answer


class Row(typing.NamedTuple):
    """One record of the input, with what it takes to read it."""

    form: Format
    places: dict  # the columns of each role, as Format.bind says
    order: typing.Optional[str]  # of day, month and year; None if nobody said and nothing proved it
    line: int
    record: dict
    number: int = 0  # among rows with an equal key, from 1; 0 if it is to be counted
    key: typing.Optional[str] = None  # without its number; of a mended reject, what it was, "" if that was not known

    def value(self, role):
        """The first filled value among a role's columns; trackers write nothing as an empty cell or as `-`.

        A list of one is what it holds: a lone tag is the project by convention. Of several texts, none is.
        :raise Unreadable: a list where there can be one value only
        """
        for column in self.places.get(role, ()):
            found = self.record.get(column)
            if isinstance(found, str):
                found = found.strip()
            elif isinstance(found, list):
                lone = len(found) == 1 and isinstance(found[0], (str, int, float))
                if found and not lone and role not in ("project", "description", "client", "task"):
                    raise Unreadable(column, "is a list")
                found = found[0] if lone else None
            if found not in (None, "", "-"):
                return found
        return None

    def column(self, role):
        """The name of a role's column, as the input has it."""
        return self.places.get(role, [role])[0]

    def read(self, role, reader, *more):
        """A role's value through a reader, None where it is empty. :raise Unreadable: with the column's name."""
        value = self.value(role)
        try:
            return None if value is None else reader(value if role == "duration" else str(value), *more)
        except ValueError as fault:
            raise Unreadable(self.column(role), str(fault)) from None


def recognise(kind, names, options):
    """The format of a header or JSON shape. :raise Stop: none fits, or two do."""
    found = ", ".join(sorted(names)) or "nothing"
    if options.map:
        name = ("generic" if kind == "csv" else "generic-json") if options.format == "auto" else options.format
        form = Format(name, kind, ",".join(options.map.values()), unit=HOURS, **options.map)
        lacking = ", ".join(form.missing(names))
        if kind == "csv" and lacking:
            raise Stop(USAGE, f"--map names a column that the input lacks: {lacking}. It has: {found}")
        return form
    known = [form for form in FORMATS if form.kind == kind and options.format in ("auto", form.name)]
    fits = [form for form in known if not form.missing(names) and (not form.only or form.only >= set(names))]
    fits = [form for form in fits if form.source != "generic"] or fits  # the generic one is what no tracker claims
    if len(fits) == 1:
        return fits[0]
    if fits:
        both = " and ".join(form.name for form in fits)
        raise Stop(USAGE, f"The input fits {both}; --format says which it is. Its columns are: {found}")
    if not known:
        there = ", ".join(form.name for form in FORMATS if form.kind == kind)
        raise Stop(USAGE, f"There is no {kind} format {options.format}; there are: {there}")
    near = min(known, key=lambda form: len(form.missing(names)) / len(form.needs))
    lacking = ", ".join(near.missing(names)) or "no other column"
    says = f"Nearest is {near.name}, which needs: {lacking}. --map can name other columns."
    raise Stop(NO_INPUT, f"The input is of no known format. Its columns are: {found}. {says}")


def read_source(file, options):
    """A binary file -> yields its rows, one at a time: of CSV, of JSON, or of JSON lines as --rejects writes them."""
    if file.read(4) == b"PK\x03\x04":
        says = "The ZIP file is damaged, or locked, or does not hold one time_entries.csv."
        faults = zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, RuntimeError  # the last: a password
        with or_stop(NO_INPUT, says, *faults), zipfile.ZipFile(file) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith("time_entries.csv"))
            file = io.BytesIO(archive.read(name))
    file.seek(0)
    encoding = "utf-16" if file.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    file.seek(0)
    # Bytes that are no UTF-8 come as lone surrogates: in a header or in JSON they end the run, in a row they reject it.
    text = io.TextIOWrapper(file, encoding, errors="surrogateescape", newline="")
    with or_stop(NO_INPUT, "The input is not UTF-8 text. Export it as CSV UTF-8, or as JSON.", UnicodeError):
        first = next(filter(str.strip, text), "")
        first.encode()
        text.seek(0)
        if not first:
            raise Stop(NO_INPUT, "The input is empty.")
        if first.lstrip()[:1] not in ("[", "{"):
            with or_stop(NO_INPUT, "The input is no CSV that can be read:", csv.Error):
                yield from read_csv(text, first, options)
        elif first.startswith("{") and all(f'"{name}"' in first for name in ("format", "occurrence", "row", "errors")):
            yield from read_rejects(text, options)
        else:
            yield from read_json(text, options)


def read_csv(text, first, options):
    """Rows of a CSV file. A row's line is where it begins, also when a cell holds line breaks."""
    reader = functools.partial(csv.reader, text, delimiter=max("\t;,", key=first.count), strict=True)
    header = [name.strip() for name in next(filter(any, reader()), [])]
    names = [f"{name} {place}" if name in header[:place] else name for place, name in enumerate(header)]
    form = recognise("csv", names, options)
    places = form.bind(names)

    def rows(order):
        text.seek(0)
        records = reader()
        next(filter(any, records), None)  # the header
        end = records.line_num
        for cells in records:
            line, end = end + 1, records.line_num
            if any(cells):
                record = dict(itertools.zip_longest(names, cells[: len(names)], fillvalue=""))
                if any(cells[len(names) :]):
                    record[MORE] = ", ".join(cells[len(names) :])
                yield Row(form, places, order, line, record)

    order = options.date_format or prove_order(filter(None, (row.value("date") for row in rows(None))))
    yield from rows(order)


def read_json(text, options):
    """Rows of a JSON document: a bare array, or the array inside an API's answer. A row's line is its number."""
    records = []
    for number, row in enumerate(listed(parse_json(text.read().encode())), start=1):
        if not isinstance(row, dict):
            raise Stop(NO_INPUT, f"Row {number} of the JSON is no object, so it is no tracker's export.")
        with or_stop(NO_INPUT, f"Row {number} of the JSON is nested too deep.", RecursionError):
            records += [(number, record) for record in unfolded(flat(row))]
    if records:
        form = recognise("json", {name for _, record in records[:100] for name in record}, options)
        places = form.bind(())
        for number, record in records:
            yield Row(form, places, options.date_format, number, record)


def unfolded(record):
    """The records in a row of Toggl's reports, which puts entries that are alike into one; any other row is one."""
    parts = record.get("time_entries")
    if parts and isinstance(parts, list) and all(isinstance(part, dict) and "seconds" in part for part in parts):
        return [{**record, **flat(part), "time_entries": None} for part in parts]
    return [record]


def flat(record, way=""):
    """{"user": {"name": "Kim"}} as {"user.name": "Kim"}: a column of JSON is called by the way that leads there."""
    columns = {}
    for name, value in record.items():
        if isinstance(value, dict):
            columns.update(flat(value, f"{way}{name}."))
        else:
            columns[way + name] = value
    return columns


def parse_json(text):
    """JSON from a file or a tracker. :raise Stop: it only begins like it."""
    with or_stop(NO_INPUT, "The input begins like JSON and is none:", ValueError, RecursionError):
        return json.loads(text)


def listed(data):
    """The array in an API's answer, bare or inside an object; an object without one is the only row.

    :raise Stop: there are errors beside the rows
    """
    if isinstance(data, list):
        return data
    if data.get("errors"):
        raise Stop(
            NO_INPUT, "The input reports errors beside its rows, so it may not be whole; nothing of it was uploaded."
        )
    return next((data[name] for name in TOP if isinstance(data.get(name), list)), [data])


def read_rejects(text, options):
    """Rows of a mended file of rejects: they keep their number among equal ones, so that they keep their keys.

    A row whose start could not be read has no number yet: it comes last, and is counted after those of this file.
    """
    if options.snapshot:
        raise Stop(USAGE, "A file of rejects is never all there is, so --snapshot would void the rest; leave it out.")
    forms, rows = {form.name: form for form in FORMATS}, []
    for line, written in enumerate(text, start=1):
        if not written.strip():
            continue
        says = f"Line {line} is not as --rejects writes it; mend only its row."
        faults = ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError
        with or_stop(NO_INPUT, says, *faults):
            reject = json.loads(written)
            form, record, number = forms[reject["format"]], flat(reject["row"]), int(reject["occurrence"] or 0)
        if options.map:
            form = recognise(form.kind, list(record), options)
        elif form.source == "generic" and form.missing(record):
            raise Stop(USAGE, f"Line {line} has columns of its own: use the --map that the first run had.")
        key = str(reject.get("key") or "")
        rows.append(Row(form, form.bind(list(record)), options.date_format, line, record, number, key))
    return sorted(rows, key=lambda row: row.number == 0)


def began(row, options):
    """(calendar day, start) of a row; no start without a time."""
    role = "start" if "start" in row.places else "date"
    if row.value(role) is None:
        raise Unreadable(row.column(role), "is empty")
    if role == "start":
        start = row.read("start", read_moment, options.zone)
        return start.date().isoformat(), start
    day, time_of_day = row.read("date", read_date, row.order), row.read("time", read_time)
    return day, datetime.fromisoformat(f"{day}T{time_of_day}") if time_of_day else None


def identify(row, user, day, start, options):
    """What makes a row the same row on the next run -> (key, whether rows with an equal one are numbered).

    The tracker's id is best; a start is the next best, because a correction keeps it. Without either, the row's own
    columns are the key: all but the hours, so that corrected hours change the entry and add none.
    """
    if (given := row.value("external_id")) is not None:
        return str(given), False
    if (number := row.value("id")) is not None:
        return f"{row.form.source}:{user}:{number}", False
    if start:
        start = start.astimezone(timezone.utc) if start.tzinfo else start
        return f"{row.form.source}:{user}:{start.isoformat()}", True
    own = [day, row.value("project") or options.project, row.value("description")]
    own += [row.value(role) for role in ("client", "task") if role in row.form.roles]
    return f"{row.form.source}:{user}:{hashlib.sha256(repr(tuple(own)).encode()).hexdigest()[:24]}", True


def make_entry(row, user, day, start, options):
    """A row as the API takes it, None for one of no length. :raise Unreadable: the column at fault, and why."""
    if row.value("gone") is not None:
        return {"deleted": True}
    worked = worked_time(row, day, start, options)
    if not worked:
        return None
    project, description = row.value("project") or options.project, row.value("description")
    if not project:
        raise Unreadable(row.column("project"), "is empty; --project NAME says it")
    if UNDECODED.search(f"{user}{project}{description}"):
        column = next((name for name, cell in row.record.items() if UNDECODED.search(str(cell))), "--project")
        raise Unreadable(column, "is not UTF-8; export as CSV UTF-8, or as JSON")
    entry = {"user_id": user, "date": day, "project": str(project), "hours": round(worked / 3600, 4)}
    return {**entry, "description": SPACES.sub(" ", str(description or "")).strip()}


def worked_time(row, day, start, options):
    """Seconds of work in a row; 0 for a timer that runs, which has an empty end or (Toggl) a negative duration.

    A duration that can be read counts; one that cannot (Excel makes `02:00:00 AM` of two hours) gives way to end minus
    start.
    """
    ends = [role for role in ("end", "end_time") if role in row.places]
    if ends and row.value(ends[0]) is None:
        return 0
    worked = row.read("duration", read_duration, row.form.unit)
    if worked is None and ends and start:
        end = ended(row, day, start, options)
        if (start.tzinfo is None) != (end.tzinfo is None):
            raise Unreadable(row.column(ends[0]), "and the start must both say their zone, or neither")
        worked = elapsed(start, end, options.zone)
        if worked < 0:
            raise Unreadable(row.column(ends[0]), "is before the start")
    if worked is None:
        written = row.value("duration")
        why = "is empty" if written is None else f"{written!r} is no duration, and no end says it"
        raise Unreadable(row.column("duration"), why)
    if worked < 0 and row.form.unit == HOURS:
        raise Unreadable(row.column("duration"), "is negative")
    return max(worked, 0)


def ended(row, day, start, options):
    """When a row with a start ended; by the clock alone, an end before the start is on the next day."""
    if "end" in row.places:
        return row.read("end", read_moment, options.zone)
    last = row.read("end_date", read_date, row.order)
    end = datetime.fromisoformat(f"{last or day}T{row.read('end_time', read_time)}")
    return end if last or end >= start else end + timedelta(days=1)


# ---- HTTP: deadlines, retries, no redirects ----

# What can go wrong between two machines does, at night, with nobody there. Each answer has a time limit, and the whole
# run has one. Trouble that passes is met by trying again, after a pause that is random, so that a hundred jobs that
# failed together do not come back together. It is safe: the API knows each row by its key, and takes it once.

LOOPBACK = re.compile(r"localhost|127(\.\d{1,3}){3}|::1")
SECONDS_ASKED = re.compile(r"\d{1,12}", re.ASCII)
TRIES, TIMEOUT, DEADLINE, LARGEST = 5, 30, 480, 64 * 1024 * 1024  # seconds for one answer and for the whole run; bytes
AGAIN = {402, 408, 425, 429}  # besides every 5xx; a tracker's 402 is a quota, which comes back


def safe_url(name, url):
    """An https address, or http on this machine. :raise Stop: any other."""
    with or_stop(CONFIG, f"{name} is not a web address that can be used; it must hold no password.", ValueError):
        parts = urllib.parse.urlsplit(url)
        if not parts.hostname or parts.port == 0 or "@" in parts.netloc or not re.fullmatch("[!-~]+", url):
            raise ValueError
    if parts.scheme != "https" and not (parts.scheme == "http" and LOOPBACK.fullmatch(parts.hostname)):
        raise Stop(CONFIG, f"{name} must start with https://, because what goes over http:// can be read on its way.")
    return url


def send(request, deadline):
    """One request -> (status, headers, body), whatever the status. :raise OSError, HTTPException: no answer."""
    proxies = {} if LOOPBACK.fullmatch(urllib.parse.urlsplit(request.full_url).hostname) else None
    opener = urllib.request.OpenerDirector()  # without a handler for redirects: a token follows nobody elsewhere
    handlers = urllib.request.ProxyHandler(proxies), urllib.request.HTTPHandler(), urllib.request.HTTPSHandler()
    for handler in handlers:
        opener.add_handler(handler)
    body = bytearray()
    with opener.open(request, timeout=min(TIMEOUT, max(1, deadline - clock()))) as answer:
        while chunk := answer.read1(65_536):
            body += chunk
            if len(body) > LARGEST or clock() > deadline:
                raise OSError("the answer is endless")
        if answer.length:
            raise OSError("the answer was cut off")
    return answer.status, answer.headers, bytes(body)


def pause(headers, attempt):
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


def persist(what, request, deadline):
    """Send until there is an answer worth having -> (status, headers, body).

    Tries again after no answer, after 402, 408, 425, 429 and after 5xx: TRIES times, and not past the deadline. Any
    other status is an answer, for the caller to judge. :raise Stop: 75, or 78 for a certificate nobody vouches for.
    """
    for attempt in range(TRIES):
        headers = {}
        try:
            status, headers, body = send(request, deadline)
            if status < 500 and status not in AGAIN:
                return status, headers, body
            trouble = f"{what} at {request.host} answered {status}"
        except (OSError, http.client.HTTPException) as fault:
            reason = fault.reason if isinstance(fault, urllib.error.URLError) else fault
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise Stop(CONFIG, f"{what}: the certificate cannot be trusted ({reason.verify_message}).") from None
            hint = "; is that its name?" if isinstance(reason, socket.gaierror) else ""
            trouble = f"{what} at {request.host} cannot be reached ({reason}{hint})"
        wait = pause(headers, attempt)
        if attempt + 1 == TRIES or clock() + wait > deadline:
            break
        log.info("%s; trying again in %.0f s", trouble, wait)
        sleep(wait)
    raise Stop(LATER, f"{trouble}. Nothing is lost: run again later; what was uploaded is known and not sent twice.")


def from_url(address, options, deadline):
    """Download a tracker's answer, all its pages -> a binary file. :raise Stop: it cannot be had."""
    today = date.fromtimestamp(clock())
    first, last = (today - options.since).isoformat(), (today + timedelta(days=1)).isoformat()
    # Toggl's reports are asked for with a POST, and name the next page in headers, as a cursor for the next body.
    period = {"start_date": first, "end_date": last} if address.endswith("/search/time_entries") else None
    if options.snapshot and (period or "{from}" in address) and options.snapshot[0] < first:
        raise Stop(USAGE, f"--snapshot begins before {first}, from where on the tracker is asked; raise --since.")
    address = address.replace("{from}", first).replace("{to}", last)
    page, asked, kept = (address.replace("{page}", "1"), period), [], collections.Counter()
    while page:
        if page in asked:
            raise Stop(NO_INPUT, "The tracker's pages lead in a circle; nothing of it was uploaded.")
        asked.append(page)
        headers, text = download(*page, options.authorization, deadline)
        if text.lstrip(b"\xef\xbb\xbf\t\r\n ")[:1] not in (b"[", b"{"):
            if len(asked) > 1 or "{page}" in address or next_page(None, headers, page[0]):
                says = "The tracker's answer may have several pages, and not all are JSON; nothing of it was uploaded."
                raise Stop(NO_INPUT, says)
            return io.BytesIO(text)
        found = parse_json(text)
        rows = listed(found)
        # A row that is added while we page moves another from one page to the next, where it comes again. Equal rows of
        # one page are honest.
        kept |= collections.Counter(json.dumps(row, sort_keys=True) for row in rows)
        if period and headers.get("X-Next-ID"):
            cursor = {"first_id": headers["X-Next-ID"], "first_row_number": headers.get("X-Next-Row-Number")}
            page = address, {**period, **cursor}
        elif following := next_page(found, headers, page[0]):
            page = following, period
        else:
            page = (address.replace("{page}", str(len(asked) + 1)), period) if "{page}" in address and rows else None
    return io.BytesIO(f"[{', '.join(kept.elements())}]".encode())


def download(address, body, authorization, deadline):
    """One page of a tracker's -> (headers, bytes). :raise Stop: it cannot be had.

    `authorization` is a value for that header, or `Name: value` for one of the tracker's own.
    """
    headers = {"User-Agent": f"timesheets-sync/{VERSION}", "Accept": "application/json, text/csv;q=0.5"}
    if authorization:
        own = re.fullmatch(r"([\w-]+): *(.+)", authorization, re.ASCII)
        name, value = own.groups() if own else ("Authorization", authorization)
        headers[name] = value
    if body is not None:
        headers["Content-Type"] = "application/json"
        body = json.dumps({name: value for name, value in body.items() if value}).encode()
    request = urllib.request.Request(safe_url("SOURCE", address), body, headers)
    status, headers, text = persist("The tracker", request, deadline)
    if status in (401, 403):
        raise Stop(DENIED, f"The tracker answered {status}. SOURCE_AUTHORIZATION must let this job in.")
    if status != 200:
        raise Stop(NO_INPUT, f"The tracker answered {status}, not data.")
    return headers, text


def next_page(found, headers, here):
    """The next page's address as most APIs say it: a Link header (RFC 8288), `links.next` (Harvest) or `metadata.next`
    (Tempo). "" on the last one. :raise Stop: on another host, which must learn no secrets.
    """
    faults = ValueError, TypeError, AttributeError, RecursionError
    with or_stop(NO_INPUT, "The tracker names a next page without an address.", *faults):
        inside = flat({name: found.get(name) for name in ("links", "metadata")}) if isinstance(found, dict) else {}
        names = "links.next", "links.next.href", "metadata.next", "metadata.next.href"
        following = linked(headers) or next(filter(None, map(inside.get, names)), "")
        following = following and urllib.parse.urljoin(here, following)
        if following and urllib.parse.urlsplit(following)[:2] != urllib.parse.urlsplit(here)[:2]:
            says = "The tracker's next page is on another host; its authorization does not follow there."
            raise Stop(NO_INPUT, says)
    return following


def linked(headers):
    """The address of the next page in a Link header, "" without one."""
    link = re.search(r'<([^>]*)>\s*;[^,]*rel="?next"?', headers.get("Link") or "")
    return link[1] if link else ""


# ---- Token: the client-credentials grant (RFC 6749 section 4.4), kept until it expires ----

# The secret goes to the issuer and to nobody else, in the body of a request, where no log and no process list shows it.
# What comes back is a token for the API, good for a day. Whoever reads it can use it, so it is kept in a file that only
# this user can read; and it is kept, because the issuer bills each one: every 15 minutes makes 2,880 a month, or 30.

NEEDED = ("AUTH0_DOMAIN", "AUTH0_AUDIENCE", "AUTH0_CLIENT_ID", "AUTH0_CLIENT_SECRET", "TIMESHEETS_URL")
OTHERS = ("TOKEN_URL", "TOKEN_SCOPE", "TOKEN_RESOURCE")  # for issuers that are not Auth0


def read_settings(env):
    """The five settings, and the three for other issuers. :raise Stop: all that is missing, in one sentence."""
    settings = {name: env.get(name, "").strip() for name in NEEDED + OTHERS}
    if env.get("AUTH0_CLIENT_SECRET_FILE") and not settings["AUTH0_CLIENT_SECRET"]:
        settings["AUTH0_CLIENT_SECRET"] = private_text(env["AUTH0_CLIENT_SECRET_FILE"]).strip()
    missing = [name for name in NEEDED if not settings[name]]
    if missing:
        where = "They come from the environment or --env-file; the README says where to find each."
        raise Stop(CONFIG, f"Missing: {', '.join(missing)}. {where}")
    domain = settings["AUTH0_DOMAIN"]
    issuer = safe_url("AUTH0_DOMAIN", domain if "://" in domain else f"https://{domain}/").rstrip("/")
    settings["TOKEN_URL"] = safe_url("TOKEN_URL", settings["TOKEN_URL"] or issuer + "/oauth/token")
    settings["api"] = safe_url("TIMESHEETS_URL", settings["TIMESHEETS_URL"]).rstrip("/")
    return settings


def private_text(path):
    """A file that holds a secret. :raise Stop: it cannot be read, or others can read it too."""
    with or_stop(CONFIG, f"{path} cannot be read:", OSError, UnicodeDecodeError):
        if os.name == "posix" and os.stat(path).st_mode & 0o077:
            raise Stop(CONFIG, f"{path} can be read by others. It holds a secret: chmod 600 {path}")
        with open(path, encoding="utf-8") as file:
            return file.read()


def read_env_file(path):
    """NAME=VALUE lines; quotes around a value and `export` before a name are taken off."""
    env = {}
    for number, line in enumerate(map(str.strip, private_text(path).splitlines()), start=1):
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            env[name.replace("export ", "").strip()] = value.strip().strip("\"'")
        elif line and not line.startswith("#"):
            raise Stop(CONFIG, f"{path}, line {number}: expected NAME=VALUE.")
    return env


def token_request(settings):
    """Build the request for a token; the secret goes into its body and nowhere else.

    Auth0 goes by `audience`; others ignore that (RFC 6749 section 3.2) and go by `scope` or `resource` (RFC 8707).
    """
    form = {"grant_type": "client_credentials", "client_id": settings["AUTH0_CLIENT_ID"]}
    form |= {"client_secret": settings["AUTH0_CLIENT_SECRET"], "audience": settings["AUTH0_AUDIENCE"]}
    form |= {"scope": settings["TOKEN_SCOPE"], "resource": settings["TOKEN_RESOURCE"]}
    form = {name: value for name, value in form.items() if value}  # some refuse `resource` as such
    return urllib.request.Request(settings["TOKEN_URL"], urllib.parse.urlencode(form).encode())


def read_token(status, body, settings):
    """Judge the answer to `token_request` -> (token, the time it expires, in seconds since 1970).

    RFC 6749 section 5. Does not check the signature: that is the API's business, to which the token goes unread.
    :raise Stop: what is wrong, what it usually means, and what to do about it.
    """
    answer = None
    with contextlib.suppress(ValueError):
        answer = json.loads(body)
    if not isinstance(answer, dict):
        says = f"The token endpoint answered {status} and no JSON; is AUTH0_DOMAIN right? {NOT_AUTH0}"
        raise Stop(DENIED, says)
    if status != 200:
        raise Stop(DENIED, refused(status, f"{answer.get('error')}: {answer.get('error_description')}", settings))
    token, lifetime = answer.get("access_token"), answer.get("expires_in")
    if not isinstance(token, str) or str(answer.get("token_type")).lower() != "bearer":
        raise Stop(DENIED, "The token endpoint answered without a bearer token; is AUTH0_DOMAIN an Auth0 tenant's?")
    if token.count(".") != 2:
        says = "The issuer gave an opaque token, so it does not know the audience; is AUTH0_AUDIENCE right?"
        raise Stop(CONFIG, f"{says} {NOT_AUTH0}")
    if "batch:upload" not in str(answer.get("scope", "batch:upload")).split(" "):
        raise Stop(DENIED, f"The token does not permit uploads. {ADD_SCOPE}")
    return token, clock() + (lifetime if isinstance(lifetime, (int, float)) else 0)


ADD_SCOPE = (
    "Add batch:upload to the application's grant: Auth0 dashboard > Applications > APIs > the Timesheets API > "
    "Machine to Machine Applications > this application."
)
NOT_AUTH0 = "If the issuer is not Auth0: TOKEN_URL, TOKEN_SCOPE and TOKEN_RESOURCE say what its token endpoint wants."


def refused(status, description, settings):
    """What a refusal by the token endpoint usually means."""
    if status == 401:
        return "The issuer does not accept AUTH0_CLIENT_ID with its secret. Was the secret rotated?"
    if "Service not found" in description:
        return f"The issuer has no API with the identifier {settings['AUTH0_AUDIENCE']}. AUTH0_AUDIENCE must match one."
    if "client-grant" in description or "not authorized" in description:
        return f"This application may not ask for tokens for {settings['AUTH0_AUDIENCE']}. {ADD_SCOPE}"
    if status == 404 or re.match("invalid_(request|scope|target|resource):", description):
        return f"The issuer does not understand the request for a token ({status}). {NOT_AUTH0}"
    return f"The issuer refused a token ({status}). Is the client-credentials grant on for this application?"


def cached_token(settings, folder, deadline, fresh=False):
    """A token from the cache, or a new one when it has less than a minute left, or when `fresh` asks for one.

    The cache is named after whom is asked, by which client, for what, so that two jobs may share a folder. It is
    written under another name and moved into place: whoever reads it finds a whole token or none.
    """
    named = "\n".join(settings[name] for name in ("AUTH0_CLIENT_ID", "AUTH0_AUDIENCE", *OTHERS))
    path = os.path.join(folder, f"token-{hashlib.sha256(named.encode()).hexdigest()[:16]}.json")
    try:
        kept = json.loads(private_text(path)) if os.path.exists(path) and not fresh else {"expires": 0}
        if kept["expires"] - 60 > clock():
            return str(kept["token"])
    except (Stop, ValueError, LookupError, TypeError):
        log.warning("%s is no private file with a token in it; a new one is fetched", path)
    status, _, body = persist("The token endpoint", token_request(settings), deadline)
    token, expires = read_token(status, body, settings)
    log.info("token ok, good for %.0f minutes", (expires - clock()) / 60)
    handle, temporary = tempfile.mkstemp(dir=folder)  # mode 0600 from the start; the rename is all or nothing
    with open(handle, "w", encoding="utf-8") as file:
        json.dump({"token": token, "expires": expires}, file)
    os.replace(temporary, path)
    return token


# ---- Upload: chunks of rows, each judged by the API ----

# The API answers a chunk with one result a row, after it is on disk. Rows it does not take are reported by line. If
# this job or the API is killed at any moment, the next run sends everything again, and what is there is `unchanged`.


class Api:
    """The Timesheets API as this job sees it."""

    def __init__(self, settings, folder, deadline):
        self.settings, self.folder, self.deadline = settings, folder, deadline
        self.token = cached_token(settings, folder, deadline)

    def call(self, path, body=None):
        """(status, headers, JSON). A token that is refused is dropped and fetched once more. :raise Stop: no use."""
        for fresh in (False, True):
            headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
            request = urllib.request.Request(self.settings["api"] + path, body, headers)
            status, headers, text = persist("The Timesheets API", request, self.deadline)
            if status != 401 or fresh:
                break
            self.token = cached_token(self.settings, self.folder, self.deadline, fresh=True)
        says = f"The Timesheets API answered {status} and no JSON; is TIMESHEETS_URL right?"
        with or_stop(CONFIG, says, ValueError):
            answer = json.loads(text)
        detail = answer.get("detail", "") if isinstance(answer, dict) else ""
        if status == 401:
            says = "Do AUTH0_DOMAIN and AUTH0_AUDIENCE match the API's?"
            raise Stop(DENIED, f"The API does not accept the issuer's token. {says}")
        if status == 403:
            raise Stop(DENIED, f"The API says: {detail} {ADD_SCOPE}")
        if status == 404:
            detail += " Is TIMESHEETS_URL right? It is the API's own address, without /timesheets."
        if status not in (200, 413):
            raise Stop(CONFIG, f"The API answered {status}: {detail}")
        return status, headers, answer

    def upload(self, rows, dry_run):
        """Upload rows -> a result each, in order: {"index", "external_id", "status", "id", "errors"}.

        A chunk that is too large for the API (413) is halved. :raise Stop: 70, a row got no result.
        """
        if not rows:
            return []
        query = "?dry_run=1" if dry_run else ""
        status, _, answer = self.call("/timesheets/upload" + query, json.dumps(rows).encode())
        if status == 413 and len(rows) > 1:
            middle = len(rows) // 2
            return self.upload(rows[:middle], dry_run) + self.upload(rows[middle:], dry_run)
        results = answer.get("results") if status == 200 and isinstance(answer, dict) else None
        if results is None or [result.get("index") for result in results] != list(range(len(rows))):
            says = "run again with -v and tell its makers."
            raise Stop(SOFTWARE, f"The API's answer does not account for every row; {says}")
        return results

    def stored(self, first, last):
        """This source's live entries in the window, page by page."""
        path = f"/timesheets/upload?limit=1000&from={first}&to={last}"
        while path:
            _, headers, entries = self.call(path)
            yield from entries
            query = urllib.parse.urlsplit(linked(headers)).query  # the path is ours, whatever stands before the API
            path = f"/timesheets/upload?{query}" if query else ""


# ---- The run: read, upload, void, account ----

# Every row that was read ends as exactly one of these, or the run ends with 70: better a false alarm than lost hours.
OUTCOMES = ("created", "updated", "unchanged", "deleted", "rejected", "skipped")


class Run:
    """One run's rows and what became of them."""

    def __init__(self, options, api, rejects):
        self.options, self.api, self.rejects = options, api, rejects
        self.read, self.unreadable, self.counts = 0, 0, collections.Counter()
        self.seen, self.sent, self.chunk = collections.Counter(), {}, []
        self.people, self.running, self.named = set(), set(), ""

    def take_all(self, file):
        """Take every row of a source. Equal keys are numbered within it: of two sources, one may repeat the other."""
        self.seen.clear()
        for row in read_source(file, self.options):
            self.take(row)
            if self.read % 1000 == 0:
                progress(self, file)

    def take(self, row):
        """Turn a row into an entry and queue it; a row that cannot be read is a reject and stops no other."""
        self.read += 1
        entry = fault = None
        numbered = changed = False
        try:
            if row.record.get(MORE):
                raise Unreadable("the row", "has more cells than the header; is a comma not quoted?")
            if str(row.value("running")) in ("True", "current"):
                self.running.add(str(row.value("id")))
            else:
                user = self.whose(row)
                day, start = began(row, self.options)
                key, numbered = identify(row, user, day, start, self.options)
                entry = make_entry(row, user, day, start, self.options)
        except Unreadable as problem:
            fault = dict(zip(("field", "detail"), problem.args))
        if not entry and not fault:  # a timer that runs, or a row of no length
            self.counts["skipped"] += 1
            return
        # Equal keys are honest, of rows that began at once or are alike: a number tells them apart. A row that is
        # refused has its number too, if its key is known, and keeps it when it comes back mended; a mend that changes
        # the key makes it another row.
        if numbered:
            changed = row.key not in (None, key)
            number = (not changed and row.number) or self.seen[key] + 1
            self.seen[key] = max(self.seen[key], number)
            row = row._replace(number=number, key=key)
            key += f":{number}" if number > 1 else ""
        if fault:
            self.unreadable += 1
            self.reject(row, [fault])
        else:
            if len(key) > 200:
                key = f"{row.form.source}:{hashlib.sha256(key.encode(errors='surrogatepass')).hexdigest()}"
            self.queue(key, user, entry, row, changed)

    def whose(self, row):
        """Whose row it is: as it says, or as --user says. :raise Stop: --user would make one person of two."""
        named = row.value("user")
        if named is None:
            names = (row.value(role) for role in ("first_name", "last_name"))
            named = " ".join(str(name) for name in names if name is not None)
        named = str(named)
        self.named = self.named or named
        if self.options.user and named and named != self.named:
            raise Stop(USAGE, f"There are rows of {self.named} and of {named}; --user would give all to one person.")
        if not self.options.user and not named:
            raise Unreadable(row.column("user"), "is empty; --user EMAIL says whose the row is")
        return self.options.user or named

    def queue(self, key, user, entry, row, changed):
        """Print an entry, or have it uploaded with the next chunk; once, of sources that overlap."""
        sent = {"external_id": key, **entry}
        if self.options.print:
            print(json.dumps(sent, ensure_ascii=False))
            return
        self.people.add(user)
        said = hash(tuple(entry.values()))  # enough to compare two rows of one key, and small where a million are kept
        if key not in self.sent:
            self.sent[key] = said
            self.chunk.append((sent, row, changed))
        elif self.sent[key] == said:
            self.counts["skipped"] += 1
        else:
            says = "is the key of an earlier row, which says something else; one of the two must be wrong"
            self.reject(row, [{"field": "external_id", "detail": says}])
        if len(self.chunk) == 1000:
            self.flush()

    def flush(self):
        """Upload what is queued and note each row's outcome.

        A mend that makes a reject another row must not replace an entry that is there: the API is asked first.
        """
        changed = [sent for sent, _, changed in self.chunk if changed]
        asked = self.api.upload(changed, dry_run=True)
        there, kept = {result["external_id"] for result in asked if result["status"] == "updated"}, []
        for sent, row, _ in self.chunk:
            if sent["external_id"] in there:
                says = "there is another entry with this day and start already; upload the mended export instead"
                self.reject(row, [{"field": row.column("start" if "start" in row.places else "date"), "detail": says}])
            else:
                kept.append((sent, row))
        results = self.api.upload([sent for sent, _ in kept], self.options.dry_run)
        for result, (_, row) in zip(results, kept):
            if result["status"] == "rejected":
                self.reject(row, result["errors"])
            else:
                self.counts[result["status"]] += 1
        self.chunk = []

    def reject(self, row, errors):
        """Note a row that was not taken: where it stands, what it says, why."""
        self.counts["rejected"] += 1
        log.error("line %s: %s", row.line, "; ".join(f"{error['field']} {error['detail']}" for error in errors))
        log.info("    %s", ", ".join(str(value) for value in row.record.values()))
        if self.rejects:
            known_by = {"line": row.line, "format": row.form.name, "key": row.key, "occurrence": row.number}
            print(json.dumps({**known_by, "row": row.record, "errors": errors}, ensure_ascii=False), file=self.rejects)

    def void_missing(self):
        """Void what the API has in the window and the input lacks, for its people only.

        :raise Stop: the input may be incomplete: no rows, rows that could not be read, or more gone than --max-delete.
        """
        if not self.read:
            raise Stop(NO_INPUT, "The input is empty, and an empty snapshot would void everything; nothing was done.")
        if self.unreadable:
            says = "so nothing is voided: they may be what is missing."
            raise Stop(REJECTED, f"{self.unreadable} rows could not be read, {says}")
        trackers = {tracker_of(key) for key in self.sent}
        live = [entry for entry in self.api.stored(*self.options.snapshot) if entry["user_id"] in self.people]
        live = [entry for entry in live if tracker_of(entry["external_id"]) in trackers]
        # Harvest lets a timer run on in an entry that had ended before.
        live = [entry for entry in live if entry["external_id"].rpartition(":")[2] not in self.running]
        gone = []
        for entry in live:
            if entry["external_id"] in self.sent:
                continue
            if entry["approved"]:
                log.error("%s of %s is gone upstream but approved, so it stays", entry["external_id"], entry["date"])
            else:
                gone.append({"external_id": entry["external_id"], "deleted": True})
        limit = max(5, len(live) // 10) if self.options.max_delete is None else self.options.max_delete
        if len(gone) > limit:
            says = f"more than --max-delete {limit}. Is the export complete? If so, raise --max-delete."
            raise Stop(USAGE, f"{len(gone)} of {len(live)} entries are gone upstream, {says} Nothing was voided.")
        for start in range(0, len(gone), 1000):
            for result in self.api.upload(gone[start : start + 1000], self.options.dry_run):
                self.read += 1
                self.counts[result["status"]] += 1

    def account(self):
        """Say what happened. :raise Stop: 70, the outcomes do not add up to the rows read."""
        if sum(self.counts.values()) != self.read:
            raise Stop(SOFTWARE, f"{self.read} rows were read, but {sum(self.counts.values())} are accounted for.")
        said = ", ".join(f"{self.counts[outcome]} {outcome}" for outcome in OUTCOMES if self.counts[outcome])
        changed = sum(self.counts[outcome] for outcome in ("created", "updated", "deleted", "rejected"))
        line = f"{'dry run: ' if self.options.dry_run else ''}{self.read} rows: {said or 'nothing to do'}"
        log.log(logging.WARNING if changed else logging.INFO, line)


def tracker_of(key):
    """The tracker that a key begins with; a key of the contractor's own making is a generic one."""
    source = key.partition(":")[0]
    return source if source in {form.source for form in FORMATS} else "generic"


def progress(run, file=None):
    """A bar on a terminal, how far the file is read; nothing under cron. Without a file, the bar goes away."""
    if not sys.stderr.isatty() or run.options.quiet:
        return
    bar = ""
    if file is not None:
        place = file.tell()
        part = place / max(1, file.seek(0, os.SEEK_END))
        file.seek(place)
        bar = f"[{'#' * round(part * 30):30}] {run.read:,} rows"
    print(f"\r{bar}\033[K", end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def only_one(folder):
    """A lock per state directory, which the system frees when this process ends, however it ends. :raise Stop: 75."""
    with open(os.path.join(folder, "lock"), "a+") as file:
        with or_stop(LATER, "Another run is under way in this state directory; this one leaves.", OSError):
            if sys.platform == "win32":
                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def state_folder(options):
    """Where token and lock are kept, for this user only. :raise Stop: it cannot be made."""
    with or_stop(CONFIG, "Nothing can be kept; --state-dir DIR names another place:", OSError, RuntimeError):
        home = os.environ.get("XDG_STATE_HOME") or os.environ.get("LOCALAPPDATA")
        folder = options.state_dir or os.path.join(home or pathlib.Path.home() / ".local/state", "timesheets-sync")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    return folder


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(USAGE, f"{message}; --help says more\n")


def parse_options(arguments):
    """The command line. :raise SystemExit, Stop: 64 and a sentence, it cannot be understood."""
    statuses = " ".join(__doc__.partition("Exit status: ")[2].split())
    parser = Parser(description=__doc__.partition("\n")[0], epilog=f"Exit status: {statuses}")
    add, formats = parser.add_argument, ", ".join(form.name for form in FORMATS)
    # fmt: off
    add("source", nargs="+", metavar="SOURCE", help="a file, - for standard input, or a URL with {from} and {to}; "
        "SOURCE_AUTHORIZATION is its Authorization header, or another one if written `X-Api-Key: KEY`")
    add("--format", default="auto", help=f"the export's format, if it cannot be told: {formats}")
    add("--user", type=str.strip, metavar="EMAIL", help="whose rows these are, for exports that do not say, or not by "
        "e-mail")
    add("--project", type=str.strip, metavar="NAME", help="the project of all rows, for exports that do not say")
    add("--map", metavar="user_id=Who,date=Day", help="which column is what, in any other input")
    add("--date-format", choices=sorted(ORDERS), help="the order in 03/04/2026, if no date in the input proves it")
    add("--tz", metavar="ZONE", help="where the person works: Europe/Berlin")
    add("--since", default="14d", metavar="14d", help="how far back {from} in a URL is")
    add("--snapshot", metavar="FROM..TO", help="the input is all of these days; void what it lacks")
    add("--max-delete", type=int, metavar="N", help="void no more than this (default: 5, or 10 %% if more)")
    add("--dry-run", action="store_true", help="let the API say what would happen, and store nothing")
    add("--print", action="store_true", help="print the entries as they would be sent; no network, no settings")
    add("--rejects", metavar="FILE", help="write rejected rows there, as JSON lines; mended, the file is a SOURCE")
    add("--env-file", metavar="FILE", help="NAME=VALUE lines for what the environment does not say; chmod 600")
    add("--state-dir", metavar="DIR", help="where the token and the lock are kept")
    add("-v", "--verbose", action="store_true", help="tell each stage")
    add("-q", "--quiet", action="store_true", help="tell failures only")
    add("--version", action="version", version=VERSION)
    # fmt: on
    return read_options(parser.parse_args(arguments))


def read_options(options):
    """The options that are more than text: --since in days, --tz, --snapshot as two days, --map as {role: column}."""
    with or_stop(USAGE, f"{options.since} is no number of days; 14d would be one.", TypeError):
        options.since = timedelta(days=int(re.fullmatch(r"(\d{1,4})d?", options.since)[1]))
    with or_stop(USAGE, f"{options.tz} is no time zone; Europe/Berlin would be one.", LookupError, ValueError, OSError):
        options.zone = zoneinfo.ZoneInfo(options.tz) if options.tz else None
    if options.snapshot:
        says = f"{options.snapshot} must be two days in order, such as 2026-11-01..2026-11-30."
        with or_stop(USAGE, says, ValueError):
            first, last = (date.fromisoformat(day) for day in options.snapshot.split(".."))
            if first > last:
                raise ValueError
        options.snapshot = first.isoformat(), last.isoformat()
    if options.map:
        plain = "date", "time", "start", "end", "duration", "project", "description", "id", "external_id"
        roles = {"user_id": "user", "hours": "duration", **dict(zip(plain, plain))}
        says = f"--map must be ROLE=COLUMN with commas between; roles are {', '.join(sorted(roles))}."
        with or_stop(USAGE, says, LookupError, TypeError):
            pairs = [re.fullmatch("(.*?)=(.+)", part) for part in options.map.split(",")]
            options.map = {roles[pair[1].strip()]: pair[2].strip() for pair in pairs}
    return options


def open_source(source, options, deadline):
    """A file, standard input or a tracker's answer as a binary file to be read twice. :raise Stop: it cannot be."""
    if "://" in source:
        return from_url(source, options, deadline)
    with or_stop(NO_INPUT, f"{source} cannot be read:", OSError):
        file = sys.stdin.buffer if source == "-" else open(source, "rb")
        if source != "-" and file.seekable():
            return file
        copy = tempfile.TemporaryFile()
        shutil.copyfileobj(file, copy)
        copy.seek(0)
        return copy


def open_rejects(path, sources):
    """The file of rejects, empty. :raise Stop: it cannot be written, or is what is about to be read."""
    with or_stop(USAGE, f"{path} cannot be written:", OSError):
        if any(os.path.exists(path) and os.path.exists(name) and os.path.samefile(path, name) for name in sources):
            raise Stop(USAGE, f"--rejects {path} would overwrite the source; name another file.")
        return open(path, "w", encoding="utf-8", errors="backslashreplace")


def run(options):
    """The whole job -> the exit status."""
    deadline = clock() + DEADLINE
    with contextlib.ExitStack() as stack:
        api = None
        env = {**(read_env_file(options.env_file) if options.env_file else {}), **os.environ}
        options.authorization = env.get("SOURCE_AUTHORIZATION", "").strip()
        if not (options.authorization.isascii() and options.authorization.isprintable()):
            raise Stop(CONFIG, "SOURCE_AUTHORIZATION holds a line break or another character that no header can.")
        if not options.print:
            settings, folder = read_settings(env), state_folder(options)
            stack.enter_context(only_one(folder))
            api = Api(settings, folder, deadline)
        elif isinstance(sys.stdout, io.TextIOWrapper):  # JSON is UTF-8 wherever it is printed
            sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
        rejects = stack.enter_context(open_rejects(options.rejects, options.source)) if options.rejects else None
        job = Run(options, api, rejects)
        for source in options.source:
            with open_source(source, options, deadline) as file:
                job.take_all(file)
        progress(job)
        log.info("read %s rows", job.read)
        if api:
            job.flush()
            if options.snapshot:
                job.void_missing()
            job.account()
        return REJECTED if job.counts["rejected"] else OK


GO_ON = "Run again to go on: what was uploaded is known and not sent twice."


def main(arguments=None):
    """Run, and turn every ending into a sentence and an exit status."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # there is none after `>&-`
    try:
        options = parse_options(arguments)
        level = logging.ERROR if options.quiet else logging.INFO if options.verbose else logging.WARNING
        logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr, force=True)
        status = run(options)
        sys.stdout.flush()
        return status
    except Stop as stop:
        log.error("%s", stop)
        return stop.status
    except OSError as fault:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be written on the way out
        if isinstance(fault, BrokenPipeError) and options.print and not options.rejects:  # `| head` has read enough
            return OK
        log.error("Stopped: %s. %s", fault, GO_ON)
        return LATER
    except KeyboardInterrupt:
        log.error("Stopped. %s", GO_ON)
        return LATER


if __name__ == "__main__":
    sys.exit(main())
