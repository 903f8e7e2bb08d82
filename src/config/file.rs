//! The file as written: TOML read key by key, with the place of every value, so that all problems are found at once.
//!
//! A [`Table`] hands out values by name and remembers what it was asked for; whatever is left at [`Table::finish`] is
//! an unknown key. A getter never fails: it notes the [`ConfigProblem`] and goes on with the default, and the
//! [`Setting`] it returns says that its value is not to be built upon. What the values mean together is `check`'s work.

use std::{
    cell::RefCell,
    fmt,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use toml::de::{DeTable, DeValue};

use crate::limits::{GIB, KIB, MIB, TIB};

/// One thing wrong with the configuration, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblem {
    pub file: PathBuf,
    /// 1-based; `None` where the problem is that something is missing.
    pub line: Option<usize>,
    /// Dotted, with indexes: `egress.source[1].public`. Empty where the file as a whole is meant.
    pub key: String,
    pub detail: String,
    pub fix: String,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}: {}", self.detail, self.fix)
    }
}

/// What is wrong with a value and what to do: a [`ConfigProblem`] that does not know its place yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    pub detail: String,
    pub fix: String,
}

pub fn wrong(detail: impl Into<String>, fix: impl Into<String>) -> Wrong {
    Wrong { detail: detail.into(), fix: fix.into() }
}

/// Collects the problems of one file.
pub struct Reader<'a> {
    file: &'a Path,
    text: &'a str,
    /// Where each line but the first begins: every value that is read asks for its line.
    lines: Vec<usize>,
    problems: RefCell<Vec<ConfigProblem>>,
}

/// Where a key stands, or would stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyAt {
    pub key: String,
    pub line: Option<usize>,
}

/// A value as read, or its default.
#[derive(Clone, Debug)]
pub struct Setting<T> {
    pub value: T,
    pub place: KeyAt,
    pub written: bool,
    /// Written wrongly: `value` is only a stand-in, so nothing is to be concluded from it.
    pub broken: bool,
}

impl<T> Setting<T> {
    /// The default is another one than the getter was given; it counts only where nothing was written.
    pub fn or_default(mut self, default: T) -> Self {
        if !self.written {
            self.value = default;
        }
        self
    }
}

impl<'a> Reader<'a> {
    pub fn new(file: &'a Path, text: &'a str) -> Self {
        let lines = text.match_indices('\n').map(|(at, _)| at + 1).collect();
        Self { file, text, lines, problems: RefCell::default() }
    }

    pub fn note(&self, place: &KeyAt, wrong: Wrong) {
        self.push(ConfigProblem {
            file: self.file.to_owned(),
            line: place.line,
            key: place.key.clone(),
            detail: wrong.detail,
            fix: wrong.fix,
        });
    }

    pub fn push(&self, problem: ConfigProblem) {
        self.problems.borrow_mut().push(problem);
    }

    pub fn into_problems(self) -> Vec<ConfigProblem> {
        self.problems.into_inner()
    }

    /// Every syntax error of the document. A document with one is not looked into: what follows would mislead.
    pub fn parse(&self) -> Option<DeTable<'a>> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in &errors {
            let line = error.span().map(|span| self.line_at(span.start));
            self.note(
                &KeyAt { key: String::new(), line },
                wrong(
                    format!("not valid TOML: {}", error.message().trim_end().replace('\n', ", ")),
                    "correct the syntax; the other keys are looked at once it is valid",
                ),
            );
        }
        errors.is_empty().then(|| table.into_inner())
    }

    fn line_at(&self, offset: usize) -> usize {
        self.lines.partition_point(|&begins| begins <= offset) + 1
    }
}

/// One table of the document, or the empty one where it is not written.
pub struct Table<'a, 'r> {
    reader: &'r Reader<'a>,
    table: Option<&'r DeTable<'a>>,
    place: KeyAt,
    asked: RefCell<Vec<&'static str>>,
}

/// One written value.
pub struct Item<'a, 'r> {
    pub reader: &'r Reader<'a>,
    pub value: &'r DeValue<'a>,
    pub place: KeyAt,
}

impl<'a, 'r> Table<'a, 'r> {
    pub fn root(reader: &'r Reader<'a>, table: &'r DeTable<'a>) -> Self {
        let place = KeyAt { key: String::new(), line: None };
        Self { reader, table: Some(table), place, asked: RefCell::default() }
    }

    pub fn place(&self) -> &KeyAt {
        &self.place
    }

    pub fn is_written(&self) -> bool {
        self.table.is_some()
    }

    /// Where `key` stands; the table's own line where it is not written.
    pub fn place_of(&self, key: &'static str) -> KeyAt {
        match self.item(key) {
            Some(item) => item.place,
            None => KeyAt { key: self.path(key), line: self.place.line },
        }
    }

    pub fn note(&self, key: &'static str, wrong: Wrong) {
        self.reader.note(&self.place_of(key), wrong);
    }

    fn path(&self, key: &str) -> String {
        if self.place.key.is_empty() { key.to_owned() } else { format!("{}.{key}", self.place.key) }
    }

    pub fn item(&self, key: &'static str) -> Option<Item<'a, 'r>> {
        self.asked.borrow_mut().push(key);
        let (written, value) = self.table?.get_key_value(key)?;
        let line = Some(self.reader.line_at(written.span().start));
        Some(Item { reader: self.reader, value: value.get_ref(), place: KeyAt { key: self.path(key), line } })
    }

    /// The table under `key`: empty where it is not written, or is something else (which is noted).
    pub fn table(&self, key: &'static str) -> Table<'a, 'r> {
        let item = self.item(key);
        let table = item.as_ref().and_then(|item| {
            let table = item.value.as_table();
            if table.is_none() {
                item.mistyped("a table");
            }
            table
        });
        let place = item.map_or_else(|| KeyAt { key: self.path(key), line: None }, |item| item.place);
        Table { reader: self.reader, table, place, asked: RefCell::default() }
    }

    /// The tables under `[[key]]`.
    pub fn tables(&self, key: &'static str) -> Vec<Table<'a, 'r>> {
        let mut tables = Vec::new();
        for item in self.items(key, "an array of tables").unwrap_or_default() {
            match item.value.as_table() {
                Some(table) => tables.push(Table {
                    reader: self.reader,
                    table: Some(table),
                    place: item.place,
                    asked: RefCell::default(),
                }),
                None => item.mistyped("a table"),
            }
        }
        tables
    }

    fn items(&self, key: &'static str, wanted: &str) -> Option<Vec<Item<'a, 'r>>> {
        let item = self.item(key)?;
        let Some(array) = item.value.as_array() else {
            item.mistyped(wanted);
            return None;
        };
        let items = array.iter().enumerate().map(|(index, value)| Item {
            reader: self.reader,
            value: value.get_ref(),
            place: KeyAt {
                key: format!("{}[{index}]", item.place.key),
                line: Some(self.reader.line_at(value.span().start)),
            },
        });
        Some(items.collect())
    }

    /// One value, read by `read`.
    pub fn read<T>(
        &self,
        key: &'static str,
        default: T,
        read: impl FnOnce(&DeValue<'a>) -> Result<T, Wrong>,
    ) -> Setting<T> {
        let Some(item) = self.item(key) else {
            let place = KeyAt { key: self.path(key), line: self.place.line };
            return Setting { value: default, place, written: false, broken: false };
        };
        match read(item.value) {
            Ok(value) => Setting { value, place: item.place, written: true, broken: false },
            Err(wrong) => {
                self.reader.note(&item.place, wrong);
                Setting { value: default, place: item.place, written: true, broken: true }
            }
        }
    }

    /// A text, turned into a value by `parse`.
    pub fn text<T>(&self, key: &'static str, default: T, parse: impl FnOnce(&str) -> Result<T, Wrong>) -> Setting<T> {
        self.read(key, default, |value| parse(as_text(value)?))
    }

    /// As [`Self::text`], for a value that need not be there and has no default.
    pub fn optional<T>(&self, key: &'static str, parse: impl FnOnce(&str) -> Result<T, Wrong>) -> Setting<Option<T>> {
        self.text(key, None, |text| parse(text).map(Some))
    }

    /// As [`Self::text`], for a value that must be there. `None`: the problem is noted.
    pub fn required<T>(&self, key: &'static str, fix: &str, parse: impl FnOnce(&str) -> Result<T, Wrong>) -> Option<T> {
        let setting = self.optional(key, parse);
        if !setting.written {
            self.reader.note(&setting.place, wrong("is missing", fix));
        }
        setting.value
    }

    pub fn flag(&self, key: &'static str, default: bool) -> Setting<bool> {
        self.read(key, default, |value| value.as_bool().ok_or_else(|| mistyped(value, "true or false")))
    }

    pub fn number(&self, key: &'static str, default: u64, range: RangeInclusive<u64>) -> Setting<u64> {
        self.read(key, default, |value| {
            let number = as_integer(value)?;
            u64::try_from(number).ok().filter(|number| range.contains(number)).ok_or_else(|| {
                wrong(format!("{number} is out of range"), format!("{} to {}", range.start(), range.end()))
            })
        })
    }

    pub fn count(&self, key: &'static str, default: u32, range: RangeInclusive<u32>) -> Setting<u32> {
        let wide = self.number(key, default.into(), (*range.start()).into()..=(*range.end()).into());
        let value = u32::try_from(wide.value).unwrap_or(default);
        Setting { value, place: wide.place, written: wide.written, broken: wide.broken }
    }

    pub fn duration(&self, key: &'static str, default: Duration, range: RangeInclusive<Duration>) -> Setting<Duration> {
        self.text(key, default, |text| {
            let duration = parse_duration(text)?;
            in_range(text, duration, &range, show_duration)
        })
    }

    pub fn size(&self, key: &'static str, default: u64, range: RangeInclusive<u64>) -> Setting<u64> {
        self.text(key, default, |text| {
            let size = parse_size(text)?;
            in_range(text, size, &range, show_size)
        })
    }

    /// Every element read by `read`, with its place; those that cannot be read are noted and left out. `None`: not
    /// written, or not an array (which is noted).
    pub fn list<T>(
        &self,
        key: &'static str,
        read: impl Fn(&DeValue<'a>) -> Result<T, Wrong>,
    ) -> Option<Vec<(T, KeyAt)>> {
        let mut values = Vec::new();
        for item in self.items(key, "an array")? {
            match read(item.value) {
                Ok(value) => values.push((value, item.place)),
                Err(wrong) => self.reader.note(&item.place, wrong),
            }
        }
        Some(values)
    }

    /// As [`Self::list`], of texts.
    pub fn texts<T>(&self, key: &'static str, parse: impl Fn(&str) -> Result<T, Wrong>) -> Option<Vec<(T, KeyAt)>> {
        self.list(key, |value| parse(as_text(value)?))
    }

    /// Written, as a list of nothing.
    pub fn is_empty_list(&self, key: &'static str) -> bool {
        self.item(key).is_some_and(|item| item.value.as_array().is_some_and(|array| array.is_empty()))
    }

    /// Notes every key that nobody asked for.
    pub fn finish(self) {
        let mut asked = self.asked.into_inner();
        asked.sort_unstable();
        asked.dedup();
        for key in self.table.into_iter().flat_map(DeTable::keys) {
            let name: &str = key.get_ref();
            if asked.contains(&name) {
                continue;
            }
            let path = if self.place.key.is_empty() { name.to_owned() } else { format!("{}.{name}", self.place.key) };
            let fix = match closest(name, &asked) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("remove it; known here: {}", asked.join(", ")),
            };
            let line = Some(self.reader.line_at(key.span().start));
            self.reader.note(&KeyAt { key: path, line }, wrong("is not a key of egressd", fix));
        }
    }
}

impl Item<'_, '_> {
    pub fn mistyped(&self, wanted: &str) {
        self.reader.note(&self.place, mistyped(self.value, wanted));
    }
}

fn mistyped(value: &DeValue<'_>, wanted: &str) -> Wrong {
    wrong(format!("is {}", with_article(value.type_str())), format!("write {wanted}"))
}

fn with_article(kind: &str) -> String {
    let article = if kind.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {kind}")
}

pub fn as_text<'v>(value: &'v DeValue<'_>) -> Result<&'v str, Wrong> {
    value.as_str().ok_or_else(|| mistyped(value, "a string in quotes"))
}

pub fn as_integer(value: &DeValue<'_>) -> Result<i64, Wrong> {
    let integer = value.as_integer().ok_or_else(|| mistyped(value, "a whole number"))?;
    i64::from_str_radix(integer.as_str(), integer.radix())
        .map_err(|_| wrong(format!("{integer} is out of range"), "write a smaller number"))
}

fn in_range<T: PartialOrd + Copy>(
    text: &str,
    value: T,
    range: &RangeInclusive<T>,
    show: impl Fn(T) -> String,
) -> Result<T, Wrong> {
    if range.contains(&value) {
        return Ok(value);
    }
    Err(wrong(format!("{text:?} is out of range"), format!("{} to {}", show(*range.start()), show(*range.end()))))
}

/// A number and its unit: `250ms`, `64KiB`.
fn split_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at_checked(digits)?;
    Some((number.parse().ok()?, unit))
}

pub fn parse_duration(text: &str) -> Result<Duration, Wrong> {
    let bad =
        || wrong(format!("{text:?} is not a duration"), "write a whole number with ms, s, m, h or d, like \"5s\"");
    let (number, unit) = split_unit(text).ok_or_else(bad)?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(bad()),
    };
    number.checked_mul(milliseconds).map(Duration::from_millis).ok_or_else(bad)
}

pub fn parse_size(text: &str) -> Result<u64, Wrong> {
    let bad = || {
        wrong(format!("{text:?} is not a size"), "write a whole number with B, KiB, MiB, GiB or TiB, like \"64KiB\"")
    };
    let (number, unit) = split_unit(text).ok_or_else(bad)?;
    let bytes = match unit {
        "B" => 1,
        "KiB" => KIB,
        "MiB" => MIB,
        "GiB" => GIB,
        "TiB" => TIB,
        _ => return Err(bad()),
    };
    number.checked_mul(bytes).ok_or_else(bad)
}

/// As the file would say it, in the largest unit that keeps it whole.
pub fn show_duration(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    for (unit, size) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
        if milliseconds.is_multiple_of(size) && (milliseconds > 0 || unit == "s") {
            return format!("{}{unit}", milliseconds / size);
        }
    }
    format!("{milliseconds}ms")
}

/// As the file would say it, in the largest unit that keeps it whole.
pub fn show_size(bytes: u64) -> String {
    for (unit, size) in [("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)] {
        if bytes > 0 && bytes.is_multiple_of(size) {
            return format!("{}{unit}", bytes / size);
        }
    }
    format!("{bytes}B")
}

/// The known name that a misspelt one most likely stands for.
pub fn closest(name: &str, known: &[&'static str]) -> Option<&'static str> {
    if name.len() > 64 {
        return None;
    }
    let allowed = if name.len() < 4 { 1 } else { (name.len() / 3).clamp(2, 3) };
    known.iter().map(|key| (distance(name, key), *key)).filter(|(far, _)| *far <= allowed).min().map(|(_, key)| key)
}

/// Levenshtein's distance, in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_read_as_written_and_shown_the_same() {
        for text in ["0s", "250ms", "5s", "15m", "24h", "7d"] {
            let shown = show_duration(parse_duration(text).unwrap());
            assert_eq!(shown, if text == "24h" { "1d" } else { text });
        }
        for text in ["0B", "10B", "64KiB", "16MiB", "50GiB", "2TiB"] {
            assert_eq!(show_size(parse_size(text).unwrap()), text);
        }
    }

    #[test]
    fn what_is_not_a_duration_or_a_size_is_refused() {
        for text in ["", "5", "s", "-5s", "5 s", "1.5s", "5S", "5w", "99999999999999999999s", "18446744073709551615d"] {
            assert!(parse_duration(text).is_err(), "{text:?}");
        }
        for text in ["", "64", "64KB", "64kib", "-1B", "1.5MiB", "18446744073709551615KiB"] {
            assert!(parse_size(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_misspelt_key_finds_its_neighbour() {
        let known = ["deadline", "drain", "in_flight", "in_flight_per_tenant"];
        for (name, near) in [
            ("dedline", Some("deadline")),
            ("in_fligth", Some("in_flight")),
            ("drian", Some("drain")),
            ("something", None),
            ("x", None),
        ] {
            assert_eq!(closest(name, &known), near, "{name}");
        }
    }
}
