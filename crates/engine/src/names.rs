//! Names for what was given none: an adjective and a flower.

use cowslip_model::Name;

use crate::error::EngineError;

const ADJECTIVES: [&str; 32] = [
    "amber", "brisk", "calm", "clear", "dappled", "early", "fair", "gentle", "hardy", "ivory",
    "keen", "late", "mellow", "misty", "noble", "pale", "quiet", "rapid", "ruddy", "shy", "silver",
    "slender", "snowy", "sunny", "swift", "tall", "tidy", "vivid", "warm", "wild", "windy",
    "young",
];

const FLOWERS: [&str; 32] = [
    "anemone",
    "aster",
    "bluebell",
    "borage",
    "bryony",
    "campion",
    "celandine",
    "clover",
    "comfrey",
    "cornflower",
    "crocus",
    "daisy",
    "fennel",
    "foxglove",
    "gentian",
    "harebell",
    "heather",
    "iris",
    "lily",
    "lupin",
    "mallow",
    "marigold",
    "orchid",
    "oxlip",
    "pansy",
    "poppy",
    "primrose",
    "saffron",
    "tansy",
    "thyme",
    "violet",
    "yarrow",
];

/// A name for which `taken` says no; with a number where the plain ones run out.
pub(crate) fn make_up(
    taken: impl Fn(&Name) -> Result<bool, EngineError>,
) -> Result<Name, EngineError> {
    for attempt in 0..64_u32 {
        let random = getrandom::u64()
            .map_err(|error| EngineError::Internal(format!("draw a random name: {error}")))?;
        let [a, b, c, d, ..] = random.to_le_bytes();
        let adjective = ADJECTIVES[usize::from(a) % ADJECTIVES.len()];
        let flower = FLOWERS[usize::from(b) % FLOWERS.len()];
        let text = if attempt < 4 {
            format!("{adjective}-{flower}")
        } else {
            format!("{adjective}-{flower}-{}", u16::from_le_bytes([c, d]))
        };
        let name: Name = text
            .parse()
            .map_err(|error| EngineError::Internal(format!("make up a name: {error}")))?;
        if !taken(&name)? {
            return Ok(name);
        }
    }
    Err(EngineError::Internal(
        "made-up names are all taken: give one".to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_made_up_name_is_a_name() {
        for adjective in ADJECTIVES {
            for flower in FLOWERS {
                format!("{adjective}-{flower}-65535")
                    .parse::<Name>()
                    .unwrap();
            }
        }
        assert!(make_up(|_| Ok(true)).is_err());
    }
}
