//! Which LoRAs a job uses, and how strongly.

use serde::{Deserialize, Serialize};

/// More than these are a mistake.
const MAX: usize = 16;

/// One LoRA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraUse {
    /// As `atelier models list` shows it.
    pub name: String,
    /// −4 to 4.
    #[serde(default = "full")]
    pub weight: f64,
}

const fn full() -> f64 {
    1.0
}

/// Several, in the order in which they are added.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Loras(pub Vec<LoraUse>);

impl Loras {
    /// # Errors
    /// What is out of bounds, in words.
    pub fn check(&self) -> Result<(), String> {
        if self.0.len() > MAX {
            return Err(format!("{} LoRAs, at most {MAX} are allowed", self.0.len()));
        }
        for lora in &self.0 {
            if lora.name.trim().is_empty() {
                return Err("a LoRA without a name".into());
            }
            if !(-4.0..=4.0).contains(&lora.weight) {
                return Err(format!("the weight {} of {:?} is not within -4 to 4", lora.weight, lora.name));
            }
        }
        Ok(())
    }

    /// `"film:0.8, grain"`.
    fn parse(text: &str) -> Result<Self, String> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let one = |part: &str| match part.rsplit_once(':') {
            None => Ok(LoraUse { name: part.into(), weight: full() }),
            Some((name, weight)) => {
                let weight = weight.trim().parse().map_err(|_| format!("{weight:?} is no weight of a LoRA"))?;
                Ok(LoraUse { name: name.trim().into(), weight })
            }
        };
        parts.map(one).collect::<Result<_, _>>().map(Self)
    }
}

impl<'de> Deserialize<'de> for Loras {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Text(String),
            List(Vec<LoraUse>),
        }
        let shape = "loras is a list of {\"name\", \"weight\"}, or a text such as \"film:0.8, grain\"";
        match Raw::deserialize(deserializer).map_err(|_| serde::de::Error::custom(shape))? {
            Raw::Text(text) => Self::parse(&text).map_err(serde::de::Error::custom),
            Raw::List(list) => Ok(Self(list)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Loras, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn a_list_and_a_text_mean_the_same() {
        let list = parse(r#"[{"name":"film","weight":0.8},{"name":"org/grain"}]"#).expect("a list");
        assert_eq!(parse(r#""film:0.8, org/grain""#).expect("a text"), list);
        assert!((list.0[1].weight - 1.0).abs() < f64::EPSILON);
        assert_eq!(parse(&serde_json::to_string(&list).expect("serialises")).expect("parses"), list);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for json in ["7", r#""film:strong""#, r#"[{"nam":"x"}]"#] {
            assert!(parse(json).is_err(), "{json}");
        }
        for json in [r#""film:5""#, r#""film:NaN""#, r#"":1""#] {
            assert!(parse(json).expect(json).check().is_err(), "{json}");
        }
    }
}
