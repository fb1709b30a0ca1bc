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
    sheet       a format bound to the header at hand: which role stands in which cell
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
import json
import logging
import os
import random
import re
import shutil
import ssl
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zoneinfo
from datetime import date, datetime, timedelta, timezone

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

VERSION = "1.0"
OK, USAGE, REJECTED, NO_INPUT, SOFTWARE, LATER, DENIED, CONFIG = 0, 64, 65, 66, 70, 75, 77, 78
log = logging.getLogger("sync")
clock, sleep = time.time, time.sleep  # names of their own, so that a test can put in others


class Stop(Exception):
    """The end of the run: an exit status and a sentence for whoever reads the cron mail."""

    def __init__(self, status, sentence):
        super().__init__(sentence)
        self.status = status


class Unreadable(ValueError):
    """Why a row is no entry: the column at fault, and what is wrong with it; besides, its key if that is known."""

    key, has_id = None, False


class Skip(Exception):
    """A row that is no finished work: counted, neither uploaded nor rejected."""


# ---- Values: days, times, numbers and durations as trackers write them ----

DATE = re.compile(r"(\d{1,4})([-/.])(\d{1,2})\2(\d{1,4})(?:[T ].*)?", re.ASCII)
TIME = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d))?(?:[.,]\d+)? ?(?:([ap])\.?m\.?)?", re.ASCII | re.IGNORECASE)
MOMENT = re.compile(
    r"(\d{4})-?(\d\d)-?(\d\d)[T ](\d\d):?(\d\d):?(\d\d)?(?:[.,]\d+)? ?(?:(Z)|([+-]\d\d):?(\d\d))?", re.ASCII
)
CLOCK = re.compile(r"(\d{1,4}):([0-5]\d)(?::([0-5]\d))?", re.ASCII)
PERIOD = re.compile(r"PT(?=\d)(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)(?:\.\d+)?S)?", re.ASCII)
PLAIN = re.compile(r"-?(?:\d+(?:[.,]\d*)?|[.,]\d+)", re.ASCII)
GROUPED = re.compile(r"-?\d{1,3}(?:(?:\.\d{3})+,|(?:,\d{3})+\.)\d*", re.ASCII)
UNITS = {"hours": 3600, "seconds": 1}
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
    """DMY or MDY, if one of the dates proves it; None where nothing needs proof. :raise Stop: both are possible."""
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
    if not match or int(match[1]) > 23 or match[2] > "59" or (match[4] and not 1 <= int(match[1]) <= 12):
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


def read_number(text):
    """A decimal number with point or comma; where both stand the later one is the decimal sign: 2.000,5 is 2000.5."""
    if GROUPED.fullmatch(text):
        text = text.replace("," if text.rfind(".") > text.rfind(",") else ".", "")
    elif not PLAIN.fullmatch(text):
        raise ValueError(f"{text!r} is not a number")
    return float(text.replace(",", "."))


@functools.lru_cache(maxsize=8192, typed=True)
def read_duration(written, unit):
    """Seconds from 1:30, 1:30:00, PT1H30M, or a number of `unit`; None for what is no duration in this format."""
    if isinstance(written, str):
        for form in (CLOCK, PERIOD):
            match = form.fullmatch(written)
            if match:
                hours, minutes, seconds = (int(part or 0) for part in match.groups())
                return hours * 3600 + minutes * 60 + seconds
        try:
            written = read_number(written)
        except ValueError:
            return None
    if not unit or isinstance(written, bool) or not abs(written) < 1e12:
        return None
    return round(written * UNITS[unit])


def elapsed(start, end, zone):
    """Seconds between two moments. With a zone, a night when the clocks change counts as long as it was."""
    zone = start.tzinfo or end.tzinfo or zone
    if zone:
        start, end = (moment if moment.tzinfo else moment.replace(tzinfo=zone) for moment in (start, end))
        start, end = start.astimezone(timezone.utc), end.astimezone(timezone.utc)
    return round((end - start).total_seconds())


# ---- Formats: one table; a further tracker is one more entry ----


class Format:
    """One kind of export.

    name        what --format takes; the part before a hyphen is the tracker, and begins every external_id
    kind        csv or json
    needs       the columns by which it is recognised, commas between; `A|B` is either, as in translations
    roles       role = column, as text; `A|B` takes the first that is filled; `a.b` is b inside a (JSON)
    unit        what a bare number in `duration` means: hours, seconds, or nothing we could trust ("")
    only        recognised only if no other column is there
    same        further columns that belong to the key where there is neither an id nor a time
    running     (column, value) of a timer that runs; besides, an empty end says so in every format
    records     makes records of one JSON object, where it holds several or hides something
    """

    def __init__(self, name, kind, needs, unit="", only="", same="", running=None, records=None, **roles):
        self.name, self.kind, self.unit, self.running, self.records = name, kind, unit, running, records
        self.source = name.partition("-")[0]
        self.needs = split(needs)
        self.only = {choice for column in split(only) for choice in column}
        self.roles = {role: split(columns)[0] for role, columns in roles.items()}
        self.same = [f"same {number}" for number, _ in enumerate(split(same))]
        self.roles.update(zip(self.same, split(same)))

    def missing(self, names):
        """What of `needs` is not among the column names."""
        return ["|".join(column) for column in self.needs if not any(self.fold(choice) in names for choice in column)]

    def fold(self, column):
        """CSV headers are compared without regard to case."""
        return column.casefold() if self.kind == "csv" else column

    def fits(self, names):
        return not self.missing(names) and (not self.only or set(names) <= self.only)


def split(columns):
    """`A|B, C` as [["A", "B"], ["C"]]."""
    return [column.strip().split("|") for column in columns.split(",") if column.strip()]


def toggl_report(record):
    """A row of Toggl's reports holds the time entries that were alike."""
    return [{**record, **entry, "time_entries": None} for entry in record.get("time_entries") or [{}]]


def one_tag(record):
    """Timewarrior has no projects. A lone tag is one by convention; of several, none can be told to be it."""
    tags = record.get("tags") or []
    return [{**record, "project": tags[0] if len(tags) == 1 else None}]


FORMATS = [
    # Toggl. Its CSV has no ids, so the start is the key. Its API tells deletions, and a timer that runs by a negative
    # duration; a report's row holds the entries that were alike, each with an id of its own.
    Format("toggl", "csv", "Start date, Start time, Duration",
           user="Email|Member|User", project="Project", description="Description", date="Start date",
           time="Start time", end_date="End date|Stop date", end_time="End time|Stop time", duration="Duration"),
    Format("toggl-api", "json", "id, start, duration, workspace_id|wid", unit="seconds",
           id="id", user="user_name|user_id|uid", project="project_name|project_id|pid", description="description",
           start="start", duration="duration", gone="server_deleted_at"),
    Format("toggl-reports", "json", "time_entries, user_id|username", unit="seconds", records=toggl_report,
           id="id", user="email|username|user_id", project="project_name|project_id", description="description",
           start="start", duration="seconds"),
    # Clockify. Dates and durations look as the workspace sets it: 1.50, 1:30 and 01:30:00 all stand in "Duration (h)".
    Format("clockify", "csv", "Start Date, Start Time, Duration (h)", unit="hours",
           user="Email|User", project="Project", description="Description", date="Start Date",
           time="Start Time", end_date="End Date", end_time="End Time", duration="Duration (h)"),
    Format("clockify-api", "json", "timeInterval.start", unit="seconds",
           id="id|_id", user="userEmail|user.email|userName|userId", description="description",
           project="projectName|project.name|projectId", start="timeInterval.start", end="timeInterval.end",
           duration="timeInterval.duration"),
    # Harvest. Its CSV has no ids and no times of day, so a row's own columns are its key, and equal rows are numbered.
    Format("harvest", "csv", "Date|Datum, Client|Kunde, Project|Projekt, Hours|Stunden", unit="hours",
           same="Client|Kunde, Task|Aufgabe",
           user="Email|E-Mail|First Name|Vorname", surname="Last Name|Nachname", project="Project|Projekt",
           description="Notes|Notizen|Notiz", date="Date|Datum", duration="Hours|Stunden"),
    Format("harvest-api", "json", "id, spent_date, hours", unit="hours", running=("is_running", True),
           id="id", user="user.email|user.name|user.id", project="project.name|project.id", description="notes",
           date="spent_date", duration="hours"),
    # Kimai. Headers come translated, durations as 0:06 or 0.11; there is no end date: an earlier end is the next day's.
    Format("kimai", "csv", "Date|Datum, From|Von, To|Bis, Duration|Dauer, Project|Projekt", unit="hours",
           id="ID", user="E-mail|E-Mail|User|Benutzer|Name", project="Project|Projekt",
           description="Description|Beschreibung", date="Date|Datum", time="From|Von", end_time="To|Bis",
           duration="Duration|Dauer"),
    Format("kimai-api", "json", "id, begin, duration, activity", unit="seconds",
           id="id", user="user.email|user.username|user.id|user", project="project.name|project.id|project",
           description="description", start="begin", end="end", duration="duration"),
    # solidtime. The detailed CSV is in the exporter's own time; the API and the ZIP are in UTC.
    Format("solidtime", "csv", "Start, End, Duration (decimal), Project",
           user="User", project="Project", description="Description", start="Start", end="End",
           duration="Duration"),
    Format("solidtime-zip", "csv", "id, description, start, end, organization_id|created_at",
           id="id", user="user_id|member_id", project="project_id", description="description", start="start",
           end="end"),
    Format("solidtime-api", "json", "id, start, end, organization_id", unit="seconds",
           id="id", user="user_id", project="project_id", description="description", start="start", end="end",
           duration="duration"),
    # Tools of the command line, one person's each: --user says whose. Timewarrior's id is a position, and never a key.
    Format("timewarrior", "json", "start", only="id, start, end, tags, annotation", records=one_tag,
           user="user", project="project", description="annotation", start="start", end="end"),
    Format("watson", "json", "id, project, start, stop, tags", running=("id", "current"),
           id="id", project="project", start="start", end="stop"),
    Format("watson-csv", "csv", "id, start, stop, project, tags",  # this id is cut to 7 characters: no key
           project="project", start="start", end="stop"),
    Format("timetrap", "json", "id, sheet, start, end, note",
           id="id", project="sheet", description="note", start="start", end="end"),
    Format("timetrap-csv", "csv", "start, end, note, sheet",
           project="sheet", description="note", start="start", end="end"),
    Format("orgclock", "csv", "task, parents, category, start, end",
           project="category", description="task", start="start", end="end"),
    # Tempo. Its worklogs have a day and a length; the time of day is no part of them.
    Format("tempo", "json", "tempoWorklogId, timeSpentSeconds, startDate", unit="seconds",
           id="tempoWorklogId", user="author.emailAddress|author.accountId", project="issue.key|issue.id",
           description="description", date="startDate", duration="timeSpentSeconds"),
    Format("tempo-csv", "csv", "Issue Key, Hours, Work date", unit="hours", same="Issue Key",
           user="Email|Username|Full name", project="Project Name|Project Key|Issue Key",
           description="Work Description", date="Work date", duration="Hours"),
    # Anything else that names its columns as the API does; --map names those of the rest.
    Format("generic", "csv", "date, project, hours", unit="hours", **(generic := {
        "user": "user_id", "project": "project", "description": "description", "date": "date",
        "duration": "hours", "external_id": "external_id"})),
    Format("generic-json", "json", "date, project, hours", unit="hours", **generic),
]  # fmt: skip


# ---- Reading: a file becomes rows, a row becomes an entry ----

# CSV is read row by row and never as a whole, so that a million rows take no more memory than a thousand. Nothing is
# told from a file's name, and nothing that can be meant two ways is taken: a contractor is paid by what is read here.
# A row that cannot be read stops no other; it is counted, and reported with its line.

SPACES = re.compile(r"[\x00-\x20\x7f-\xa0]+")
TOP = ("time_entries", "results", "data", "timeEntries")  # where APIs keep the list inside their answer


class Sheet:
    """A format bound to the columns at hand: it finds each role's value in a record."""

    def __init__(self, form, names):
        self.form, self.names = form, names
        folded = [form.fold(name) for name in names]
        self.places = {}
        for role, columns in form.roles.items():
            if form.kind == "json":
                self.places[role] = columns
            elif found := [folded.index(form.fold(column)) for column in columns if form.fold(column) in folded]:
                self.places[role] = found

    def value(self, record, role):
        """The first filled value among a role's columns; trackers write nothing as an empty cell or as `-`."""
        for place in self.places.get(role, ()):
            found = record[place] if type(place) is int and place < len(record) else reach(record, place)
            found = found.strip() if isinstance(found, str) else found
            if found not in (None, "", "-"):
                return found
        return None

    def column(self, role):
        """The name of a role's column, as the input has it."""
        place = self.places.get(role, [role])[0]
        return self.names[place] if isinstance(place, int) else place

    def read(self, record, role, reader, *more):
        """A role's value through a reader, None where it is empty. :raise Unreadable: with the column's name."""
        value = self.value(record, role)
        try:
            return None if value is None else reader(value if role == "duration" else str(value), *more)
        except ValueError as fault:
            raise Unreadable(self.column(role), str(fault)) from None

    def shown(self, record):
        """The record by column name, for the file of rejects."""
        return dict(zip(self.names, record)) if isinstance(record, list) else record


def reach(record, path):
    """`a.b` inside a JSON object; None where there is none."""
    for name in path.split(".") if isinstance(path, str) and isinstance(record, dict) else [None]:
        record = record.get(name) if isinstance(record, dict) else None
    return None if isinstance(record, (dict, list)) else record


def recognise(kind, names, options):
    """The format of a header or JSON shape. :raise Stop: none fits, or two do."""
    if options.map:
        roles = {{"user_id": "user", "hours": "duration"}.get(role, role): column for role, column in options.map}
        name = ("generic" if kind == "csv" else "generic-json") if options.format == "auto" else options.format
        return Format(name, kind, ",".join(roles.values()), "hours", **roles)
    folded = {name.casefold() for name in names} if kind == "csv" else names
    known = [form for form in FORMATS if form.kind == kind and options.format in ("auto", form.name)]
    fits = [form for form in known if form.fits(folded)]
    fits = [form for form in fits if form.source != "generic"] or fits  # the generic one is what no tracker claims
    if len(fits) == 1:
        return fits[0]
    found = ", ".join(sorted(names)) or "nothing"
    if fits:
        both = " and ".join(form.name for form in fits)
        raise Stop(USAGE, f"The input fits {both}; --format says which it is. Its columns are: {found}")
    if not known:
        there = ", ".join(form.name for form in FORMATS if form.kind == kind)
        raise Stop(USAGE, f"There is no {kind} format {options.format}; there are: {there}")
    near = min(known, key=lambda form: len(form.missing(folded)) / len(form.needs))
    says = f"Nearest is {near.name}, which also has: {', '.join(near.missing(folded))}. --map can name other columns."
    raise Stop(NO_INPUT, f"The input is of no known format. Its columns are: {found}. {says}")


def read_source(file, options):
    """A binary file -> yields (sheet, line, record, occurrence) for each row, one at a time."""
    if file.read(4) == b"PK\x03\x04":
        try:
            with zipfile.ZipFile(file) as archive:
                (name,) = (name for name in archive.namelist() if name.endswith("time_entries.csv"))
                file = io.BytesIO(archive.read(name))
        except (zipfile.BadZipFile, ValueError):
            raise Stop(NO_INPUT, "The ZIP file is damaged, or does not hold one time_entries.csv.") from None
    yield from read_text(file, options)


def read_text(file, options):
    """Rows of CSV, JSON, or JSON lines as --rejects writes them."""
    file.seek(0)
    encoding = "utf-16" if file.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    file.seek(0)
    text = io.TextIOWrapper(file, encoding, newline="")
    try:
        first = text.readline()
        while first and not first.strip():
            first = text.readline()
        text.seek(0)
        if first.lstrip()[:1] not in ("[", "{"):
            yield from read_csv(text, first, options)
        elif first.startswith("{") and '"errors"' in first:
            yield from read_rejects(text, options)
        else:
            yield from read_json(text, options)
    except UnicodeDecodeError:
        raise Stop(NO_INPUT, "The input is not UTF-8 text. Export it as CSV UTF-8, or as JSON.") from None
    except csv.Error as fault:
        raise Stop(NO_INPUT, f"The input is no CSV that can be read: {fault}.") from None
    finally:
        text.detach()


def read_csv(text, first, options):
    """Rows of a CSV file. A row's line is where it begins, also when a cell holds line breaks."""
    delimiter = max("\t;,", key=first.count)
    rows = csv.reader(text, delimiter=delimiter, strict=True)
    names = [name.strip() for name in next(rows, [])]
    sheet = Sheet(recognise("csv", names, options), names)
    start, place = rows.line_num, sheet.places.get("date", [None])[0]
    if options.date_format is None and place is not None:
        options.order = prove_order(cells[place].strip() for cells in rows if len(cells) > place)
        text.seek(0)
        rows = csv.reader(text, delimiter=delimiter, strict=True)
        next(rows)
    for cells in rows:
        line, start = start + 1, rows.line_num
        if any(cells):
            yield sheet, line, cells, None


def read_json(text, options):
    """Rows of a JSON document: a bare array, or the array inside an API's answer. A row's line is its number."""
    try:
        data = json.load(text)
    except (ValueError, RecursionError) as fault:
        raise Stop(NO_INPUT, f"The input begins like JSON and is none: {fault}.") from None
    rows = listed(data)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise Stop(NO_INPUT, f"Row {number} of the JSON is no object, so it is no tracker's export.")
    names = {name for row in rows[:100] for name in flat(row)}
    if not rows:
        return
    sheet = Sheet(recognise("json", names, options), names)
    for line, row in enumerate(rows, start=1):
        for record in sheet.form.records(row) if sheet.form.records else [row]:
            yield sheet, line, record, None


def listed(data):
    """The array in an API's answer, bare or inside an object; an object without one is the only row."""
    if isinstance(data, dict):
        return next((data[name] for name in TOP if isinstance(data.get(name), list)), [data])
    return data if isinstance(data, list) else []


def flat(row):
    """The names in a JSON object, those one level down with a dot."""
    for name, value in row.items():
        yield name
        yield from (f"{name}.{inner}" for inner in value) if isinstance(value, dict) else ()


def read_rejects(text, options):
    """Rows of a mended file of rejects: they keep their number among equal ones, so that they keep their keys."""
    forms = {form.name: form for form in FORMATS}
    for line, written in enumerate(text, start=1):
        try:
            reject = json.loads(written)
            form, row, occurrence = forms[reject["format"]], dict(reject["row"]), int(reject["occurrence"] or 0)
        except (ValueError, LookupError, TypeError):
            raise Stop(NO_INPUT, f"Line {line} is not as --rejects writes it; mend only its row.") from None
        if options.map:
            form = recognise(form.kind, list(row), options)
        elif form.source == "generic" and form.missing({form.fold(name) for name in row}):
            raise Stop(USAGE, f"Line {line} has columns of its own: use the --map that the first run had.")
        yield Sheet(form, list(row)), line, list(row.values()) if form.kind == "csv" else row, occurrence


def make_entry(sheet, record, options):
    """A record as (entry, key, whether the key is the tracker's own id, whether the tracker deleted it).

    :raise Skip: a timer that runs, or a row of no length. :raise Unreadable: the column at fault, and why.
    """
    form, value = sheet.form, functools.partial(sheet.value, record)
    if form.running and str(reach(sheet.shown(record), form.running[0])) == str(form.running[1]):
        raise Skip
    user = one_person(" ".join(str(part) for part in (value("user"), value("surname")) if part), options)
    project, number, written = value("project") or options.project, value("id"), value("description")
    if number is not None and value("gone") is not None:
        return {"user_id": user}, f"{form.source}:{user}:{number}", True, True
    if not user:
        raise Unreadable("user", "is not in the row; --user EMAIL says it")
    day, start = began(sheet, record, options)
    # The tracker's id is the best key; a start is the next best, because a correction keeps it. Without either, the
    # row's own columns are the key: all but the hours, so that corrected hours change the entry and add none.
    own = (day, project, written, *map(value, form.same))
    hashed = hashlib.sha256(repr(own).encode()).hexdigest()[:24]
    key = str(value("external_id") or f"{form.source}:{user}:{number if number is not None else start or hashed}")
    has_id = number is not None or value("external_id") is not None
    try:
        worked = worked_time(sheet, record, options, day, start)
        if not worked:
            raise Skip
        if not project:
            raise Unreadable("project", "is not in the row; --project NAME says it")
    except Unreadable as fault:
        fault.key, fault.has_id = key, has_id
        raise
    entry = {
        "user_id": user,
        "date": day,
        "project": str(project),
        "hours": round(worked / 3600, 4),
    }
    entry["description"] = SPACES.sub(" ", str(written or "")).strip()
    return entry, key, has_id, False


def one_person(named, options):
    """Whose row it is: as the row says, or as --user says. :raise Stop: --user would make one person of two."""
    options.named = options.named or named
    if options.user and named and named != options.named:
        raise Stop(USAGE, f"The input has rows of {options.named} and of {named}; --user would give all to one person.")
    return options.user or named


def began(sheet, record, options):
    """(calendar day, start) of a record; the start as text, of one form however it was written, "" without a time."""
    read = functools.partial(sheet.read, record)
    if "start" in sheet.places:
        start = read("start", read_moment, options.zone)
        if start is None:
            raise Unreadable(sheet.column("start"), "is empty")
        return start.date().isoformat(), (start.astimezone(timezone.utc) if start.tzinfo else start).isoformat()
    day, time_of_day = read("date", read_date, options.order), read("time", read_time)
    if day is None:
        raise Unreadable(sheet.column("date"), "is empty")
    return day, f"{day}T{time_of_day}" if time_of_day else ""


def worked_time(sheet, record, options, day, start):
    """Seconds of work in a record; 0 for a timer that runs, which has an empty end or (Toggl) a negative duration.

    A duration that can be read counts; one that cannot (Excel makes `02:00:00 AM` of two hours) gives way to end minus
    start.
    """
    ends = [role for role in ("end", "end_time") if role in sheet.places]
    if ends and sheet.value(record, ends[0]) is None:
        return 0
    worked = sheet.read(record, "duration", read_duration, sheet.form.unit)
    if worked is None and ends and start:
        began_at = datetime.fromisoformat(start)
        if ends == ["end"]:
            end = sheet.read(record, "end", read_moment, options.zone)
        else:
            end = end_time(sheet, record, day, began_at, options)
        worked = elapsed(began_at, end, options.zone)
        if worked < 0:
            raise Unreadable(sheet.column(ends[0]), "is before the start")
    if worked is None:
        written = sheet.value(record, "duration")
        why = "is empty" if written is None else f"{written!r} is no duration, and no end says it"
        raise Unreadable(sheet.column("duration"), why)
    if worked < 0 and sheet.form.unit == "hours":
        raise Unreadable(sheet.column("duration"), "is negative")
    return max(worked, 0)


def end_time(sheet, record, day, start, options):
    """When a row with a start ended, by the clock; without a date, an end before the start is on the next day."""
    last = sheet.read(record, "end_date", read_date, options.order)
    clock_end = sheet.read(record, "end_time", read_time)
    end = datetime.fromisoformat(f"{last or day}T{clock_end}")
    return end if last or end >= start else end + timedelta(days=1)


# ---- HTTP: deadlines, retries, no redirects ----

# What can go wrong between two machines does, at night, with nobody there. Each answer has a time limit, and the whole
# run has one. Trouble that passes is met by trying again, after a pause that is random, so that a hundred jobs that
# failed together do not come back together. It is safe: the API knows each row by its key, and takes it once.

LOOPBACK = re.compile(r"localhost|127(\.\d{1,3}){3}|::1")
TRIES, TIMEOUT, DEADLINE, LARGEST = 5, 30, 480, 64 * 1024 * 1024  # seconds for one answer and for the whole run; bytes
AGAIN = {402, 408, 425, 429, 500, 502, 503, 504}  # a tracker's 402 is a quota, which comes back


def safe_url(name, url):
    """An https address, or http on this machine. :raise Stop: any other."""
    try:
        parts = urllib.parse.urlsplit(url)
        whole = parts.hostname and parts.port != 0 and url.isprintable() and " " not in url
    except ValueError:
        whole = False
    if not whole:
        raise Stop(CONFIG, f"{name} is not a web address that can be used.")
    if parts.scheme == "https" or (parts.scheme == "http" and LOOPBACK.fullmatch(parts.hostname)):
        return url
    raise Stop(CONFIG, f"{name} must start with https://, because what goes over http:// can be read on its way.")


def send(request, deadline):
    """One request -> (status, headers, body), whatever the status. :raise OSError, HTTPException: no answer."""
    proxies = {} if LOOPBACK.fullmatch(urllib.parse.urlsplit(request.full_url).hostname or "") else None
    opener = urllib.request.OpenerDirector()  # without a handler for redirects: a token follows nobody elsewhere
    handlers = urllib.request.ProxyHandler(proxies), urllib.request.HTTPHandler(), urllib.request.HTTPSHandler()
    for handler in handlers:
        opener.add_handler(handler)
    with opener.open(request, timeout=min(TIMEOUT, max(1, deadline - clock()))) as answer:
        body = b""
        while True:
            chunk = answer.read1(65_536)
            body += chunk
            if len(body) > LARGEST or clock() > deadline:
                raise OSError("the answer is endless")
            if not chunk:
                break
        if answer.length:
            raise OSError("the answer was cut off")
    return answer.status, answer.headers, body


def pause(headers, attempt):
    """Seconds to wait before another try: what the server asks for, else a random time that doubles (full jitter)."""
    asked = headers.get("Retry-After") or ""
    if asked.isdecimal():
        return int(asked)
    try:
        when = email.utils.parsedate_to_datetime(asked).timestamp()
    except (ValueError, TypeError):  # absent, or no date
        when = None
    reset = headers.get("x-ratelimit-reset") or ""
    when = when or (int(reset) if reset.isdecimal() else None)
    return max(0, when - clock()) if when else random.uniform(1, min(60, 2 ** (attempt + 1)))


def persist(what, request, deadline):
    """Send until there is an answer worth having -> (status, headers, body).

    Tries again after no answer, after 402, 408, 425, 429 and after 5xx: TRIES times, and not past the deadline. Any
    other status is an answer, for the caller to judge. :raise Stop: 75, or 78 for a certificate nobody vouches for.
    """
    for attempt in range(TRIES):
        headers = {}
        try:
            status, headers, body = send(request, deadline)
            if status not in AGAIN:
                return status, headers, body
            trouble = f"{what} answered {status}"
        except ssl.SSLCertVerificationError as fault:
            raise Stop(CONFIG, f"{what}: the certificate cannot be trusted ({fault.verify_message}).") from None
        except (OSError, http.client.HTTPException) as fault:
            reason = getattr(fault, "reason", fault)
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise Stop(CONFIG, f"{what}: the certificate cannot be trusted ({reason.verify_message}).") from None
            trouble = f"{what} cannot be reached ({reason})"
        wait = pause(headers, attempt)
        if attempt + 1 == TRIES or clock() + wait > deadline:
            break
        log.info("%s; trying again in %.0f s", trouble, wait)
        sleep(wait)
    raise Stop(LATER, f"{trouble}. Nothing is lost: run again later; what was uploaded is known and not sent twice.")


def from_url(address, options, deadline):
    """Download a tracker's answer, all its pages -> a binary file. :raise Stop: it cannot be had."""
    since, until = date.fromtimestamp(clock()) - timedelta(days=options.since), date.fromtimestamp(clock())
    period = {"start_date": since.isoformat(), "end_date": (until + timedelta(days=1)).isoformat()}
    address = address.replace("{from}", period["start_date"]).replace("{to}", period["end_date"])
    # Toggl's reports are asked for with a POST, and name the next page in headers, as a cursor for the next body.
    body = period if address.endswith("/search/time_entries") else None
    rows, seen, page, following = [], set(), 1, address
    while following:
        following = following.replace("{page}", str(page))
        if (following, str(body)) in seen:
            raise Stop(NO_INPUT, "The tracker's pages lead in a circle; nothing was uploaded.")
        seen.add((following, str(body)))
        headers, text = download(following, body, deadline)
        if text[:1] not in (b"[", b"{"):
            return io.BytesIO(text)
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as fault:
            raise Stop(NO_INPUT, f"The tracker's answer begins like JSON and is none: {fault}.") from None
        items = listed(found)
        rows += items
        following, page = next_page(found, headers, following, address if items else None), page + 1
        if body is not None and headers.get("X-Next-ID"):
            cursor = {"first_id": headers["X-Next-ID"], "first_row_number": headers.get("X-Next-Row-Number")}
            following, body = address, {**period, **cursor}
    # A row that is added while we page moves another from one page to the next, where it comes again.
    once = {json.dumps(row, sort_keys=True): None for row in rows}
    return io.BytesIO(f"[{', '.join(once)}]".encode())


def download(address, body, deadline):
    """One page of a tracker's -> (headers, bytes). :raise Stop: it cannot be had."""
    headers = {"User-Agent": f"timesheets-sync/{VERSION}", "Accept": "application/json, text/csv;q=0.5"}
    if os.environ.get("SOURCE_AUTHORIZATION"):
        headers["Authorization"] = os.environ["SOURCE_AUTHORIZATION"]
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


def next_page(found, headers, here, pattern):
    """Where the next page is, as each API says it: a Link header (RFC 8288), `links.next` (Harvest), `metadata.next`
    (Tempo), or a number that we count. "" on the last one. :raise Stop: on another host, which must learn no secrets.
    """
    link = re.search(r'<([^>]*)>\s*;[^,]*rel="?next"?', headers.get("Link") or "")
    following = link[1] if link else ""
    if not link and isinstance(found, dict):
        places = [found.get(name) for name in ("links", "metadata")]
        following = next((place["next"] for place in places if isinstance(place, dict) and place.get("next")), "")
    if not following and pattern and "{page}" in pattern:
        return pattern
    following = urllib.parse.urljoin(here, following) if following else ""
    if following and urllib.parse.urlsplit(following)[:2] != urllib.parse.urlsplit(here)[:2]:
        raise Stop(NO_INPUT, "The tracker's next page is on another host; its authorization does not follow there.")
    return following


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
    try:
        if os.name == "posix" and os.stat(path).st_mode & 0o077:
            raise Stop(CONFIG, f"{path} can be read by others. It holds a secret: chmod 600 {path}")
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as fault:
        raise Stop(CONFIG, f"{path} cannot be read: {fault.strerror}.") from None


def read_env_file(path):
    """NAME=VALUE lines; quotes around a value and `export` before a name are taken off."""
    env = {}
    for number, line in enumerate(private_text(path).splitlines(), start=1):
        line = line.strip()
        name, equals, value = line.partition("=")
        if line and not line.startswith("#"):
            if not equals:
                raise Stop(CONFIG, f"{path}, line {number}: expected NAME=VALUE.")
            env[name.replace("export ", "").strip()] = value.strip().strip("\"'")
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
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise Stop(
            LATER if status >= 500 else DENIED,
            f"The token endpoint answered {status} and no JSON; is AUTH0_DOMAIN right? {NOT_AUTH0}",
        )
    if status != 200:
        raise Stop(DENIED, refused(status, f"{answer.get('error')}: {answer.get('error_description')}", settings))
    token, lifetime = answer.get("access_token"), answer.get("expires_in")
    if not isinstance(token, str) or str(answer.get("token_type")).lower() != "bearer":
        raise Stop(DENIED, "The token endpoint answered without a bearer token; is AUTH0_DOMAIN an Auth0 tenant's?")
    if token.count(".") != 2:
        raise Stop(
            CONFIG,
            f"The issuer gave an opaque token, so it does not know the audience; is AUTH0_AUDIENCE right? {NOT_AUTH0}",
        )
    if "batch:upload" not in str(answer.get("scope", "")).split(" ") + ["batch:upload"] * ("scope" not in answer):
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
        if os.name == "posix" and os.path.exists(path) and os.stat(path).st_mode & 0o077:
            log.warning("%s could be read by others; it was dropped, and a new token is fetched", path)
            os.unlink(path)
        with open(path, encoding="utf-8") as file:
            kept = json.load(file)
        if not fresh and kept["expires"] - 60 > clock():
            return str(kept["token"])
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError):
        log.warning("%s could not be used; a new token is fetched", path)
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
        address = urllib.parse.urljoin(self.settings["api"] + "/", path.lstrip("/"))
        for fresh in (False, True):
            request = urllib.request.Request(address, body, {"Authorization": f"Bearer {self.token}"})
            request.add_header("Content-Type", "application/json")
            status, headers, text = persist("The Timesheets API", request, self.deadline)
            if status != 401 or fresh:
                break
            self.token = cached_token(self.settings, self.folder, self.deadline, fresh=True)
        try:
            answer = json.loads(text)
        except ValueError:
            raise Stop(LATER, f"The Timesheets API answered {status} and no JSON; is TIMESHEETS_URL right?") from None
        detail = answer.get("detail", "") if isinstance(answer, dict) else ""
        if status == 401:
            raise Stop(
                DENIED,
                "The API does not accept the issuer's token. Do AUTH0_DOMAIN and AUTH0_AUDIENCE match the API's?",
            )
        if status == 403:
            raise Stop(DENIED, f"The API says: {detail} {ADD_SCOPE}")
        if status not in (200, 413):
            raise Stop(LATER if status >= 500 else CONFIG, f"The API answered {status}: {detail}")
        return status, headers, answer

    def upload(self, rows, dry_run):
        """Upload rows -> a result each, in order: {"index", "external_id", "status", "id", "errors"}.

        A chunk that is too large for the API (413) is halved. :raise Stop: 70, a row got no result.
        """
        query = "?dry_run=1" if dry_run else ""
        status, _, answer = self.call("/timesheets/upload" + query, json.dumps(rows).encode())
        if status == 413 and len(rows) > 1:
            middle = len(rows) // 2
            return self.upload(rows[:middle], dry_run) + self.upload(rows[middle:], dry_run)
        results = answer.get("results") if status == 200 else None
        if results is None or [result.get("index") for result in results] != list(range(len(rows))):
            raise Stop(
                SOFTWARE, "The API's answer does not account for every row; run again with -v and tell its makers."
            )
        return results

    def stored(self, window):
        """This source's live entries in the window, page by page."""
        path = f"/timesheets/upload?limit=1000&from={window[0]}&to={window[1]}"
        while path:
            _, headers, entries = self.call(path)
            yield from entries
            link = re.search(r'<([^>]*)>; *rel="next"', headers.get("Link") or "")
            path = urllib.parse.urlsplit(link[1])._replace(scheme="", netloc="").geturl() if link else ""


# ---- The run: read, upload, void, account ----

# Every row that was read ends as exactly one of these, or the run ends with 70: better a false alarm than lost hours.
OUTCOMES = ("created", "updated", "unchanged", "deleted", "rejected", "skipped")


class Run:
    """One run's rows and what became of them."""

    def __init__(self, options, api):
        self.options, self.api = options, api
        self.read, self.counts, self.chunk, self.queued = 0, collections.Counter(), [], {}
        self.seen, self.repeated, self.keys, self.people = set(), collections.Counter(), set(), set()
        self.trackers = set()  # a snapshot of one tracker says nothing of another's entries
        self.hours = collections.defaultdict(lambda: [0, 0, 0])  # of each person: read, rejected, stored
        self.unreadable, self.rejects_file = 0, None

    def take_all(self, file):
        """Take every row of a source. Equal keys are numbered within it: of two sources, one may repeat the other."""
        self.seen.clear()
        self.repeated.clear()
        for row in read_source(file, self.options):
            self.take(*row)
            if self.read % 1000 == 0:
                progress(self, file)

    def take(self, sheet, line, record, occurrence):
        """Turn a row into an entry and queue it; a row that cannot be read is a reject and stops no other."""
        self.read += 1
        fault = None
        try:
            entry, key, has_id, gone = make_entry(sheet, record, self.options)
        except Skip:
            self.counts["skipped"] += 1
            return
        except Unreadable as problem:
            fault, key, has_id = problem, problem.key, problem.has_id
        # Equal keys are honest, of rows that began at once or are alike: a number tells them apart.
        if key and not has_id:
            occurrence = occurrence or self.number(key)
            key = f"{key}:{occurrence}" if occurrence > 1 else key
        if fault:  # with its number, if its key is known: the row has it again when it comes back mended
            self.unreadable += 1
            self.reject(sheet, line, record, occurrence, [dict(zip(("field", "detail"), fault.args))])
            return
        if len(key) > 200:
            key = sheet.form.source + ":" + hashlib.sha256(key.encode()).hexdigest()
        row = {"external_id": key, **({"deleted": True} if gone else entry)}
        if self.options.print:
            print(json.dumps(row, ensure_ascii=False))
            return
        if self.options.snapshot:
            self.keys.add(key)
            self.people.add(entry["user_id"])
            self.trackers.add(tracker_of(key))
        if self.queued.get(key) == row:  # exports that overlap, or a page that shifted while it was read
            self.counts["skipped"] += 1
            return
        self.queued[key] = row
        self.chunk.append((row, sheet, line, record, occurrence))
        if len(self.chunk) == 1000:
            self.flush()

    def number(self, key):
        """How often this key was seen in this source, now included. A million keys would fill 150 MB; their hashes take
        half of that, and of ten million keys two share one with a chance of 1 in 20,000.
        """
        mark = hash(key) & 0xFFF_FFFF_FFFF_FFFF  # 60 bits: the largest int that takes 32 bytes
        if mark in self.seen:
            self.repeated[key] += 1
            return self.repeated[key] + 1
        self.seen.add(mark)
        return 1

    def flush(self):
        """Upload what is queued and note each row's outcome."""
        results = self.api.upload([row for row, *_ in self.chunk], self.options.dry_run) if self.chunk else []
        for result, (row, sheet, line, record, occurrence) in zip(results, self.chunk):
            hours, worked = self.hours[row.get("user_id")], row.get("hours", 0)
            hours[0] += worked
            if result["status"] == "rejected":
                hours[1] += worked
                self.reject(sheet, line, record, occurrence, result["errors"])
            else:
                hours[2] += worked
                self.counts[result["status"]] += 1
        self.chunk, self.queued = [], {}

    def reject(self, sheet, line, record, occurrence, errors):
        """Note a row that was not taken: where it stands, what it says, why."""
        self.counts["rejected"] += 1
        shown = sheet.shown(record)
        log.error("line %s: %s", line, "; ".join(f"{error['field']} {error['detail']}" for error in errors))
        log.info("    %s", ", ".join(str(value) for value in shown.values()))
        if self.options.rejects:
            kept = {"line": line, "format": sheet.form.name, "occurrence": occurrence, "row": shown, "errors": errors}
            print(json.dumps(kept, ensure_ascii=False), file=self.rejects_file)

    def void_missing(self):
        """Void what the API has in the window and the input lacks, for its people only.

        :raise Stop: the input may be incomplete: rows of it could not be read, or more than --max-delete is gone.
        """
        window = self.options.snapshot
        if self.unreadable:
            raise Stop(
                REJECTED,
                f"{self.unreadable} rows could not be read, so nothing is voided: they may be what is missing.",
            )
        people = {self.options.user} if self.options.user else self.people
        live = [entry for entry in self.api.stored(window) if entry["user_id"] in people]
        live = [entry for entry in live if tracker_of(entry["external_id"]) in self.trackers]
        missing = [entry for entry in live if entry["external_id"] not in self.keys]
        for entry in missing:
            if entry["approved"]:
                log.error("%s of %s is gone upstream but approved, so it stays", entry["external_id"], entry["date"])
        gone = [entry for entry in missing if not entry["approved"]]
        limit = max(5, len(live) // 10) if self.options.max_delete is None else self.options.max_delete
        if len(gone) > limit:
            says = f"more than --max-delete {limit}. Is the export complete? If so, raise --max-delete."
            raise Stop(USAGE, f"{len(gone)} of {len(live)} entries are gone upstream, {says} Nothing was voided.")
        for start in range(0, len(gone), 1000):
            rows = [{"external_id": entry["external_id"], "deleted": True} for entry in gone[start : start + 1000]]
            for result in self.api.upload(rows, self.options.dry_run):
                self.read += 1
                self.counts[result["status"]] += 1

    def account(self):
        """Say what happened. :raise Stop: 70, the outcomes do not add up to the rows read."""
        lost = [user for user, (read, rejected, stored) in self.hours.items() if abs(read - rejected - stored) > 0.001]
        if sum(self.counts.values()) != self.read or lost:
            raise Stop(SOFTWARE, f"{self.read} rows were read, but {sum(self.counts.values())} are accounted for.")
        said = ", ".join(f"{self.counts[outcome]} {outcome}" for outcome in OUTCOMES if self.counts[outcome])
        changed = sum(self.counts[outcome] for outcome in ("created", "updated", "deleted", "rejected"))
        line = f"{'dry run: ' if self.options.dry_run else ''}{self.read} rows: {said or 'nothing to do'}"
        log.log(logging.WARNING if changed else logging.INFO, line)
        for user, (read, _, stored) in sorted(self.hours.items(), key=str):
            log.info("    %-40s %9.2f h read, %9.2f h stored", user or "voided", read, stored)


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
        part, width = place / max(1, file.seek(0, os.SEEK_END)), min(40, shutil.get_terminal_size().columns - 30)
        file.seek(place)
        bar = f"[{'#' * round(part * width):{width}}] {run.read:,} rows"
    print(f"\r{bar}\033[K", end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def only_one(folder):
    """A lock per state directory, which the system frees when this process ends, however it ends. :raise Stop: 75."""
    with open(os.path.join(folder, "lock"), "a+") as file:
        try:
            if os.name == "posix":
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            raise Stop(LATER, "Another run is under way in this state directory; this one leaves.") from None
        yield


def state_folder(options):
    """Where token and lock are kept, for this user only. :raise Stop: it cannot be made."""
    home = os.environ.get("XDG_STATE_HOME") or os.environ.get("LOCALAPPDATA")
    if not (options.state_dir or home or os.environ.get("HOME")):
        raise Stop(CONFIG, "There is no HOME to keep the token and the lock in; --state-dir DIR names a place.")
    home = home or os.path.join(os.environ.get("HOME", ""), ".local", "state")
    folder = options.state_dir or os.path.join(home, "timesheets-sync")
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as fault:
        raise Stop(
            CONFIG, f"{folder} cannot be written to: {fault.strerror}. --state-dir DIR names another place."
        ) from None
    return folder


def parse_options(arguments):
    """The command line. :raise SystemExit: 64 and a sentence, when it cannot be understood."""
    statuses = " ".join(__doc__.partition("Exit status: ")[2].split())
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], epilog=f"Exit status: {statuses}")
    parser.error = lambda message: parser.exit(USAGE, f"{message}; --help says more\n")
    add, formats = parser.add_argument, ", ".join(form.name for form in FORMATS)
    # fmt: off
    add("source", nargs="+", metavar="SOURCE", help="a file, - for standard input, or a URL with {from} and {to}")
    add("--format", default="auto", help=f"the export's format, if it cannot be told: {formats}")
    add("--user", metavar="EMAIL", help="whose rows these are, for exports that do not say, or not by e-mail")
    add("--project", metavar="NAME", help="the project of all rows, for exports that do not say")
    add("--map", type=columns_map, metavar="user_id=Who,date=Day", help="which column is what, in any other input")
    add("--date-format", choices=sorted(ORDERS), help="the order in 03/04/2026, if no date in the input proves it")
    add("--tz", type=zone_of, dest="zone", metavar="ZONE", help="where the person works: Europe/Berlin")
    add("--since", type=days, default=14, metavar="14d", help="how far back {from} in a URL is")
    add("--snapshot", type=period, metavar="FROM..TO", help="the input is all of these days; void what it lacks")
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
    options = parser.parse_args(arguments)
    options.order, options.named = options.date_format, None
    return options


def columns_map(text):
    """--map's argument as [(role, column)]."""
    pairs = [part.partition("=") for part in text.split(",")]
    roles = {
        "user_id",
        "project",
        "description",
        "date",
        "time",
        "start",
        "end",
        "hours",
        "duration",
        "external_id",
        "id",
    }
    if not all(role in roles and column for role, _, column in pairs):
        raise argparse.ArgumentTypeError(
            f"must be ROLE=COLUMN with commas between; roles are {', '.join(sorted(roles))}"
        )
    return [(role, column) for role, _, column in pairs]


def zone_of(name):
    """--tz's argument as a zone."""
    try:
        return zoneinfo.ZoneInfo(name)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        raise argparse.ArgumentTypeError(f"{name} is no time zone; Europe/Berlin would be one") from None


def days(text):
    """--since's argument as a number of days."""
    match = re.fullmatch(r"(\d{1,4})d?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text} is no number of days; 14d would be one")
    return int(match[1])


def period(text):
    """--snapshot's argument as its two days."""
    first, dots, last = text.partition("..")
    try:
        if dots and date.fromisoformat(first) <= date.fromisoformat(last):
            return first, last
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text} must be two days in order, such as 2026-11-01..2026-11-30")


def open_sources(options, deadline):
    """The sources one after the other, as binary files that can be read twice. :raise Stop: one cannot be read."""
    for source in options.source:
        if "://" in source:
            yield from_url(source, options, deadline)
            continue
        try:
            file = tempfile.TemporaryFile() if source == "-" else open(source, "rb")
        except OSError as fault:
            raise Stop(NO_INPUT, f"{source} cannot be read: {fault.strerror}.") from None
        with file:
            if source == "-":
                shutil.copyfileobj(sys.stdin.buffer, file)
                file.seek(0)
            yield file


def open_rejects(path, sources):
    """The file of rejects, empty. :raise Stop: it cannot be written, or is what is about to be read."""
    try:
        if any(os.path.exists(path) and os.path.exists(name) and os.path.samefile(path, name) for name in sources):
            raise Stop(USAGE, f"--rejects {path} would overwrite the source; name another file.")
        return open(path, "w", encoding="utf-8", errors="backslashreplace")
    except OSError as fault:
        raise Stop(USAGE, f"{path} cannot be written: {fault.strerror}.") from None


def run(options):
    """The whole job -> the exit status."""
    deadline = clock() + DEADLINE
    with contextlib.ExitStack() as stack:
        api = None
        if not options.print:
            env = {**(read_env_file(options.env_file) if options.env_file else {}), **os.environ}
            settings, folder = read_settings(env), state_folder(options)
            stack.enter_context(only_one(folder))
            api = Api(settings, folder, deadline)
        else:  # JSON is UTF-8 wherever it is printed
            sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
        job = Run(options, api)
        if options.rejects:
            job.rejects_file = stack.enter_context(open_rejects(options.rejects, options.source))
        for file in open_sources(options, deadline):
            job.take_all(file)
        progress(job)
        log.info("read %s rows", job.read)
        if options.print:
            return REJECTED if job.counts["rejected"] else OK
        if options.snapshot and not job.read:
            raise Stop(NO_INPUT, "The input is empty, and an empty snapshot would void everything; nothing was done.")
        job.flush()
        if options.snapshot:
            job.void_missing()
        job.account()
        return REJECTED if job.counts["rejected"] else OK


def main(arguments=None):
    """Run, and turn every ending into a sentence and an exit status."""
    options = parse_options(arguments)
    level = logging.ERROR if options.quiet else logging.INFO if options.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr, force=True)
    try:
        return run(options)
    except Stop as stop:
        log.error("%s", stop)
        return stop.status
    except BrokenPipeError:
        sys.stderr.close()
        return OK
    except KeyboardInterrupt:
        log.error("Stopped. Run again to go on: what was uploaded is known and not sent twice.")
        return LATER


if __name__ == "__main__":
    sys.exit(main())
