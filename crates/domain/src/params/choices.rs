//! Parameters with a few possible values.

use serde::{Deserialize, Serialize};

/// How an upscale treats noise and compression artefacts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denoise {
    /// Measure the picture and decide.
    Auto,
    /// The plain upscaler.
    Off,
    /// waifu2x with this level, 0 to 3.
    Level(u8),
}

impl Serialize for Denoise {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Off => serializer.serialize_str("off"),
            Self::Level(level) => serializer.serialize_u8(*level),
        }
    }
}

impl<'de> Deserialize<'de> for Denoise {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Number(u64),
            Text(String),
        }
        let wrong = || serde::de::Error::custom("denoise is \"auto\", \"off\" or a level from 0 to 3");
        match Raw::deserialize(deserializer).map_err(|_| wrong())? {
            Raw::Number(level @ 0..=3) => Ok(Self::Level(u8::try_from(level).map_err(|_| wrong())?)),
            Raw::Number(_) => Err(wrong()),
            Raw::Text(text) => match text.as_str() {
                "auto" => Ok(Self::Auto),
                "off" => Ok(Self::Off),
                "0" => Ok(Self::Level(0)),
                "1" => Ok(Self::Level(1)),
                "2" => Ok(Self::Level(2)),
                "3" => Ok(Self::Level(3)),
                _ => Err(wrong()),
            },
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputFormat {
    Png,
    #[serde(alias = "jpg")]
    Jpeg,
    Webp,
}

impl OutputFormat {
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpg",
            Self::Webp => "webp",
        }
    }

    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::Webp => "image/webp",
        }
    }
}

/// How an edit gets its detail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Detail {
    /// Guided where the model was made for it and the instruction changes colours only.
    #[default]
    Auto,
    /// The change of colour is fitted at the model's size and applied to the original's pixels.
    Guided,
    /// The model's own pixels, enlarged.
    None,
}

/// The size of a picture that is made from another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// As large as the source.
    Source,
    /// As large as the model has made it.
    Model,
}

/// What a control picture shows; the order is that of the published Union model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlMode {
    Openpose,
    Depth,
    /// Soft edges: HED, PIDI, scribbles.
    #[serde(alias = "scribble", alias = "hed")]
    SoftEdge,
    /// Hard edges: Canny, line art, anyline.
    #[serde(alias = "lineart", alias = "anyline", alias = "mlsd")]
    Canny,
    Normal,
    #[serde(alias = "seg")]
    Segmentation,
    Tile,
    Repaint,
}

impl ControlMode {
    /// The place in the model's list of control types.
    pub const fn index(self) -> u32 {
        match self {
            Self::Openpose => 0,
            Self::Depth => 1,
            Self::SoftEdge => 2,
            Self::Canny => 3,
            Self::Normal => 4,
            Self::Segmentation => 5,
            Self::Tile => 6,
            Self::Repaint => 7,
        }
    }
}

/// What is done to a control picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preprocessor {
    /// It is a control picture already.
    None,
    Canny,
    /// Served by Canny; the job's result says so.
    Anyline,
    /// Served by Canny; the job's result says so.
    Lineart,
}

impl Preprocessor {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Canny => "canny",
            Self::Anyline => "anyline",
            Self::Lineart => "lineart",
        }
    }
}
