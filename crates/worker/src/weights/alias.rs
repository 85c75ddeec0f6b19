//! Names that the same tensor has in files of different ages.

/// A name as some files spell it, and as the network asks for it. A list of them is applied in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alias {
    /// What the whole name begins with.
    Prefix { found: &'static str, canonical: &'static str },
    /// What the name contains, anywhere; with dots at both ends it is whole segments.
    Part { found: &'static str, canonical: &'static str },
}

impl Alias {
    pub const fn prefix(found: &'static str, canonical: &'static str) -> Self {
        Self::Prefix { found, canonical }
    }

    pub const fn part(found: &'static str, canonical: &'static str) -> Self {
        Self::Part { found, canonical }
    }
}

/// The canonical spelling of a file's `key`.
pub(super) fn canonical(key: &str, aliases: &[Alias]) -> String {
    aliases.iter().fold(key.to_owned(), |name, alias| match alias {
        Alias::Prefix { found, canonical } => match name.strip_prefix(found) {
            Some(rest) => format!("{canonical}{rest}"),
            None => name,
        },
        Alias::Part { found, canonical } if name.contains(found) => name.replace(found, canonical),
        Alias::Part { .. } => name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_layouts_become_the_canonical_one() {
        let aliases = [
            Alias::prefix("encoder.", "text_model.encoder."),
            Alias::part(".query.", ".to_q."),
            Alias::prefix("x.", ""),
        ];
        for (key, expected) in [
            ("encoder.layers.0.bias", "text_model.encoder.layers.0.bias"),
            ("text_model.encoder.layers.0.bias", "text_model.encoder.layers.0.bias"),
            ("mid.attentions.0.query.weight", "mid.attentions.0.to_q.weight"),
            ("x.query_norm.weight", "query_norm.weight"),
        ] {
            assert_eq!(canonical(key, &aliases), expected);
        }
    }
}
