//! Reads one value: from TOML, where types are given, or from the environment and flags, where all is text.

#![expect(clippy::wildcard_enum_match_arm, reason = "TOML's types are closed, and a key has one of them")]

use std::{fmt::Display, net::SocketAddr, ops::RangeInclusive, time::Duration};

use atelier_domain::request::nearest;
use toml::Value;

use super::error::{Origin, Wrong};

/// Hours of a year as humantime counts it.
const YEAR: u64 = 8766;

/// `"forever"`: long enough, and still safe in arithmetic on milliseconds.
pub(super) const FOREVER: Duration = Duration::from_hours(1000 * YEAR);

/// The longest duration of anything but retention: safe to add to any clock.
const LONGEST: Duration = Duration::from_hours(10 * YEAR);

/// One value and where it comes from.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Given {
    pub(super) value: Value,
    /// From the environment or a flag: text that stands for whatever type the key has.
    pub(super) bare: bool,
    pub(super) origin: Origin,
}

type Read<T> = Result<T, Wrong>;

impl Given {
    /// The value as TOML where it is bare and reads so.
    pub(super) fn typed(&self) -> Value {
        if self.bare
            && let Value::String(text) = &self.value
            && let Ok(mut table) = format!("value = {text}").parse::<toml::Table>()
            && table.len() == 1
            && let Some(value) = table.remove("value")
        {
            return value;
        }
        self.value.clone()
    }

    fn wrong_type(&self, wanted: &str) -> Wrong {
        let got = match self.typed() {
            Value::String(text) => format!("the text {text:?}"),
            Value::Integer(number) => format!("the number {number}"),
            Value::Float(number) => format!("the number {number}"),
            Value::Boolean(flag) => flag.to_string(),
            Value::Datetime(time) => format!("the date {time}"),
            Value::Array(_) => "a list".to_owned(),
            Value::Table(_) => "a table".to_owned(),
        };
        Wrong::new(format!("expected {wanted}, got {got}"))
    }

    pub(super) fn text(&self) -> Read<String> {
        match (&self.value, self.bare) {
            (Value::String(text), true) => Ok(match self.typed() {
                Value::String(quoted) => quoted,
                _ => text.clone(),
            }),
            (Value::String(text), false) => Ok(text.clone()),
            _ => Err(self.wrong_type("text in quotes")),
        }
    }

    pub(super) fn flag(&self) -> Read<bool> {
        match self.typed() {
            Value::Boolean(flag) => Ok(flag),
            _ => Err(self.wrong_type("true or false")),
        }
    }

    /// A whole number within bounds.
    pub(super) fn whole<T>(&self, bounds: RangeInclusive<T>) -> Read<T>
    where
        T: TryFrom<i64> + PartialOrd + Display + Copy,
    {
        let Value::Integer(number) = self.typed() else { return Err(self.wrong_type("a whole number")) };
        T::try_from(number)
            .ok()
            .filter(|number| bounds.contains(number))
            .ok_or_else(|| Wrong::new(format!("{number} is not within {} to {}", bounds.start(), bounds.end())))
    }

    /// A list of texts; a single bare text is a list of one.
    pub(super) fn texts(&self) -> Read<Vec<String>> {
        match self.typed() {
            Value::Array(items) => items
                .into_iter()
                .map(|item| match item {
                    Value::String(text) => Ok(text),
                    other => Err(Wrong::new(format!("{other} is not text")).hint("a list of texts in quotes")),
                })
                .collect(),
            Value::String(text) if self.bare => Ok(vec![text]),
            _ if self.bare => Ok(vec![self.text()?]),
            _ => Err(self.wrong_type("a list of texts").hint("for example [\"one\", \"two\"]")),
        }
    }

    /// One of some names.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Read<T> {
        let names = || choices.iter().map(|(name, _)| *name);
        let one_of = || names().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
        let text = self.text().map_err(|wrong| wrong.hint(format!("one of {}", one_of())))?;
        choices.iter().find(|(name, _)| *name == text).map(|(_, choice)| *choice).ok_or_else(|| {
            let wrong = Wrong::new(format!("{text:?} is not known"));
            match nearest(&text.to_lowercase(), names()) {
                Some(near) => wrong.hint(format!("did you mean {near:?}? One of {}", one_of())),
                None => wrong.hint(format!("one of {}", one_of())),
            }
        })
    }

    pub(super) fn duration(&self, least: Duration) -> Read<Duration> {
        self.duration_within(least, LONGEST)
    }

    /// A duration, or `"forever"`.
    pub(super) fn retention(&self) -> Read<Duration> {
        if self.text().is_ok_and(|text| text == "forever") {
            return Ok(FOREVER);
        }
        self.duration_within(Duration::ZERO, FOREVER)
    }

    fn duration_within(&self, least: Duration, most: Duration) -> Read<Duration> {
        const HINT: &str = "a number with a unit, such as \"500ms\", \"2s\", \"10m\", \"1h\" or \"7d\"";
        let text = self.text().map_err(|_| self.wrong_type("a duration").hint(HINT))?;
        let value = humantime::parse_duration(text.trim())
            .map_err(|error| Wrong::new(format!("{text:?} is not a duration: {error}")).hint(HINT))?;
        let show = humantime::format_duration;
        if value < least {
            return Err(Wrong::new(format!("{text:?} is too short")).hint(format!("at least {}", show(least))));
        }
        if value > most {
            return Err(Wrong::new(format!("{text:?} is too long")).hint(format!("at most {}", show(most))));
        }
        Ok(value)
    }

    /// A number of bytes, at least 1.
    pub(super) fn size(&self) -> Read<u64> {
        const HINT: &str = "a size such as \"100MiB\", \"2GB\" or a plain number of bytes";
        let refuse = |what: &str| Wrong::new(format!("{what} is not a size")).hint(HINT);
        let bytes = match self.typed() {
            Value::Integer(number) => u64::try_from(number).map_err(|_| refuse(&number.to_string()))?,
            Value::String(text) => parse_size(&text).ok_or_else(|| refuse(&format!("{text:?}")))?,
            _ => return Err(self.wrong_type("a size").hint(HINT)),
        };
        if bytes == 0 {
            return Err(Wrong::new("0 bytes is too little").hint(HINT));
        }
        Ok(bytes)
    }

    /// A size; `"none"` or nothing at all sets no bound.
    pub(super) fn optional_size(&self) -> Read<Option<u64>> {
        if self.text().is_ok_and(|text| text.is_empty() || text == "none") {
            return Ok(None);
        }
        self.size().map(Some)
    }

    pub(super) fn address(&self) -> Read<SocketAddr> {
        const HINT: &str = "an IP address and a port, such as \"127.0.0.1:8470\" or \"[::1]:8470\"";
        let text = self.text().map_err(|wrong| wrong.hint(HINT))?;
        let numeric = match text.strip_prefix("localhost:") {
            Some(port) => format!("127.0.0.1:{port}"),
            None => text.clone(),
        };
        numeric.parse().map_err(|_| Wrong::new(format!("{text:?} is not an address to listen on")).hint(HINT))
    }
}

/// `100MiB`, `1.5 GB`, `4096`; units of 1024 with an i, of 1000 without.
fn parse_size(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 10] = [
        ("", 1),
        ("b", 1),
        ("kib", 1 << 10),
        ("mib", 1 << 20),
        ("gib", 1 << 30),
        ("tib", 1 << 40),
        ("kb", 1000),
        ("mb", 1_000_000),
        ("gb", 1_000_000_000),
        ("tb", 1_000_000_000_000),
    ];
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_lowercase();
    let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
    let number = number.replace('_', "");
    let (whole, fraction) = number.split_once('.').unwrap_or((&number, ""));
    // Exact: the fraction is a whole number of 10^-n, and what is left below a byte is dropped.
    let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let fraction = if fraction.is_empty() { 0 } else { fraction.parse::<u128>().ok()? };
    let bytes = whole.parse::<u128>().ok()?.checked_mul(scale)?.checked_add(fraction)?.checked_mul((*factor).into())?;
    u64::try_from(bytes / scale).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toml(value: impl Into<Value>) -> Given {
        Given { value: value.into(), bare: false, origin: Origin::Flag }
    }

    fn bare(text: &str) -> Given {
        Given { value: Value::String(text.into()), bare: true, origin: Origin::Flag }
    }

    #[test]
    fn sizes_have_units_of_1024_and_of_1000() {
        for (text, bytes) in [
            ("1", 1),
            ("4096", 4096),
            ("100MiB", 100 << 20),
            ("100 MiB", 100 << 20),
            ("100mib", 100 << 20),
            ("1.5GiB", 3 << 29),
            ("100MB", 100_000_000),
            ("2 GB", 2_000_000_000),
            ("64kB", 64_000),
            ("1_000KB", 1_000_000),
            ("12B", 12),
        ] {
            assert_eq!(toml(text).size(), Ok(bytes), "{text}");
        }
        assert_eq!(toml(4096).size(), Ok(4096));
        assert_eq!(bare("4096").size(), Ok(4096));
        for text in ["", "MiB", "1.MiB.", "1.5.2", "-1", "100 parsecs", "99999999999TiB", "0", "0MiB"] {
            let wrong = toml(text).size().expect_err(text);
            assert!(wrong.hint.contains("100MiB"), "{text}: {wrong:?}");
        }
        assert!(toml(-5).size().is_err());
        assert!(toml(1.5).size().is_err());
        assert!(toml(true).size().is_err());
    }

    #[test]
    fn a_duration_without_its_unit_says_what_to_write() {
        for given in [toml(2), toml("2"), toml("two seconds"), toml(""), bare("2"), toml("-2s")] {
            let wrong = given.duration(Duration::ZERO).expect_err("no duration");
            assert!(wrong.hint.contains("\"2s\""), "{given:?}: {wrong:?}");
        }
        assert_eq!(bare("1h 30m").duration(Duration::ZERO), Ok(Duration::from_mins(90)));
        let wrong = toml("0s").duration(Duration::from_millis(10)).expect_err("too short");
        assert_eq!(wrong.hint, "at least 10ms");
        assert!(toml("11years").duration(Duration::ZERO).is_err());
        assert_eq!(toml("11years").retention(), Ok(Duration::from_hours(11 * YEAR)));
        assert_eq!(toml("forever").retention(), Ok(FOREVER));
    }

    #[test]
    fn a_bare_text_takes_the_type_of_its_key() {
        assert_eq!(bare("true").flag(), Ok(true));
        assert_eq!(bare("true").text(), Ok("true".into()));
        assert_eq!(bare("\"true\"").text(), Ok("true".into()));
        assert_eq!(bare("12").whole(0..=100_u8), Ok(12));
        assert_eq!(bare("12").text(), Ok("12".into()));
        assert_eq!(bare("a=1\nb=2").text(), Ok("a=1\nb=2".into()));
        assert_eq!(bare("1\nb = 2").text(), Ok("1\nb = 2".into()));
        assert_eq!(bare("/mnt/a b").texts(), Ok(vec!["/mnt/a b".into()]));
        assert_eq!(bare("2024").texts(), Ok(vec!["2024".into()]));
        assert_eq!(bare("['a', 'b']").texts(), Ok(vec!["a".into(), "b".into()]));
        assert!(toml("12").whole(0..=100_u8).is_err(), "a file says 12, not \"12\"");
        assert!(toml("true").flag().is_err());
    }

    #[test]
    fn numbers_out_of_bounds_say_the_bounds() {
        let wrong = toml(101).whole(1..=100_u8).expect_err("too large");
        assert_eq!(wrong.message, "101 is not within 1 to 100");
        assert!(toml(-1).whole(0..=100_u32).is_err());
        assert!(toml(1.0).whole(0..=100_u32).is_err());
    }

    #[test]
    fn a_choice_names_the_nearest() {
        let wrong = toml("sikp").choice(&[("skip", 1), ("run", 2)]).expect_err("misspelt");
        assert!(wrong.hint.starts_with("did you mean \"skip\"?"), "{wrong:?}");
        let wrong = toml("Skip").choice(&[("skip", 1), ("run", 2)]).expect_err("capital");
        assert!(wrong.hint.starts_with("did you mean \"skip\"?"), "{wrong:?}");
        let wrong = toml(3).choice(&[("skip", 1)]).expect_err("number");
        assert_eq!(wrong.hint, "one of \"skip\"");
    }

    #[test]
    fn addresses_are_ip_and_port() {
        assert_eq!(toml("localhost:80").address(), Ok(([127, 0, 0, 1], 80).into()));
        assert!(toml("[::1]:8470").address().is_ok());
        for text in ["127.0.0.1", "8470", ":8470", "example.org:80", "127.0.0.1:99999"] {
            assert!(toml(text).address().is_err(), "{text}");
        }
    }
}
