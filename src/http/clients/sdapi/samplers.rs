//! The webui's names of samplers and schedulers, and ours.

/// Their name, ours, and whether its noise levels can be spread otherwise.
const SAMPLERS: [(&str, &str, bool); 9] = [
    ("Euler a", "euler_a", false),
    ("Euler", "euler", true),
    ("DDIM", "ddim", false),
    ("DPM++ 2M", "dpmpp_2m", true),
    ("DPM++ 2M SDE", "dpmpp_2m_sde", true),
    ("UniPC", "unipc", true),
    ("LCM", "lcm", false),
    ("PLMS", "pndm", false),
    ("PNDM", "pndm", false),
];

/// Their names, with ours.
pub(super) fn names() -> impl Iterator<Item = (&'static str, &'static str)> {
    SAMPLERS.into_iter().map(|(theirs, ours, _)| (theirs, ours))
}

/// The schedulers that have a meaning here, with their labels. All but the first spread the noise levels.
pub(super) const SCHEDULERS: [(&str, &str); 4] =
    [("automatic", "Automatic"), ("karras", "Karras"), ("exponential", "Exponential"), ("beta", "Beta")];

/// Our name of a sampler with a scheduler; a scheduler that the sampler has no use for counts for nothing. Older
/// clients write both into one name, and ours are understood as well.
pub(super) fn ours(sampler: &str, scheduler: &str) -> Option<String> {
    let sampler = sampler.trim().to_ascii_lowercase();
    let spread = |name: &str| SCHEDULERS[1..].iter().map(|(known, _)| *known).find(|known| name == *known);
    let (sampler, in_name) = match sampler.rsplit_once([' ', '_']) {
        Some((front, last)) if spread(last).is_some() => (front, spread(last)),
        Some(_) | None => (sampler.as_str(), None),
    };
    let (_, ours, spreads) =
        SAMPLERS.iter().find(|(theirs, ours, _)| theirs.eq_ignore_ascii_case(sampler) || *ours == sampler)?;
    Some(match in_name.or_else(|| spread(&scheduler.trim().to_ascii_lowercase())) {
        Some(spread) if *spreads => format!("{ours}_{spread}"),
        Some(_) | None => (*ours).to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheduler_counts_where_it_changes_something() {
        for (sampler, scheduler, expected) in [
            ("Euler a", "automatic", Some("euler_a")),
            ("euler A", "Karras", Some("euler_a")),
            ("DPM++ 2M", "Karras", Some("dpmpp_2m_karras")),
            ("DPM++ 2M", "Automatic", Some("dpmpp_2m")),
            ("DPM++ 2M Karras", "", Some("dpmpp_2m_karras")),
            ("DPM++ 2M SDE", "Exponential", Some("dpmpp_2m_sde_exponential")),
            ("dpmpp_2m_sde_karras", "", Some("dpmpp_2m_sde_karras")),
            ("PLMS", "Uniform", Some("pndm")),
            ("Heun", "", None),
            ("", "Karras", None),
        ] {
            assert_eq!(ours(sampler, scheduler).as_deref(), expected, "{sampler:?} {scheduler:?}");
        }
    }
}
