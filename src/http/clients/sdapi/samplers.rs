//! The webui's names of samplers and schedulers, and ours.

/// Their name, their scheduler's name, and ours for both. The first of a sampler is what it means by itself.
const SAMPLERS: [(&str, &str, &str); 10] = [
    ("Euler a", "", "euler_a"),
    ("Euler", "", "euler"),
    ("DDIM", "", "ddim"),
    ("DPM++ 2M", "", "dpmpp_2m"),
    ("DPM++ 2M", "karras", "dpmpp_2m_karras"),
    ("DPM++ 2M Karras", "", "dpmpp_2m_karras"),
    ("DPM++ 2M SDE", "", "dpmpp_2m_sde"),
    ("UniPC", "", "unipc"),
    ("LCM", "", "lcm"),
    ("PLMS", "", "pndm"),
];

/// Their names, each once, with ours.
pub(super) fn names() -> impl Iterator<Item = (&'static str, &'static str)> {
    SAMPLERS.into_iter().filter(|(_, scheduler, _)| scheduler.is_empty()).map(|(theirs, _, ours)| (theirs, ours))
}

/// The schedulers that have a meaning here.
pub(super) const SCHEDULERS: [(&str, &str); 2] = [("automatic", "Automatic"), ("karras", "Karras")];

/// Our name of a sampler with a scheduler. Ours are understood as well.
pub(super) fn ours(sampler: &str, scheduler: &str) -> Option<&'static str> {
    let of = |wanted: &str| {
        let same = |theirs: &str, ours: &str| theirs.eq_ignore_ascii_case(sampler) || ours == sampler;
        SAMPLERS
            .iter()
            .find(|(theirs, with, ours)| same(theirs, ours) && with.eq_ignore_ascii_case(wanted))
            .map(|(.., ours)| *ours)
    };
    of(scheduler).or_else(|| of(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheduler_counts_where_it_changes_something() {
        assert_eq!(ours("Euler a", "automatic"), Some("euler_a"));
        assert_eq!(ours("euler A", "Karras"), Some("euler_a"));
        assert_eq!(ours("DPM++ 2M", "Karras"), Some("dpmpp_2m_karras"));
        assert_eq!(ours("DPM++ 2M", "Automatic"), Some("dpmpp_2m"));
        assert_eq!(ours("dpmpp_2m_sde", ""), Some("dpmpp_2m_sde"));
        assert_eq!(ours("Heun", ""), None);
    }
}
