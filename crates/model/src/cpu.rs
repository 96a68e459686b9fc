//! Processors: what a saved machine needs of the host's, and what of it a guest is shown.

use std::collections::BTreeSet;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a machine that ran on a processor needs of the one that it is restored on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCpu {
    /// Who made it: "GenuineIntel", "AuthenticAMD".
    pub vendor: String,
    /// Its name, for people.
    pub name: String,
    /// Family and model; none where a template made the guest independent of it.
    pub model: Option<(u32, u32)>,
    /// Instruction sets that a program of the guest may have found and may go on using, as
    /// `/proc/cpuinfo` names them.
    pub instructions: BTreeSet<String>,
}

/// Flags of `/proc/cpuinfo` that name instructions, by how they begin. The other flags say what a kernel
/// does about its processor, and change when that is updated.
const INSTRUCTIONS: &[&str] = &[
    "3dnow",
    "abm",
    "adx",
    "aes",
    "amx",
    "avx",
    "bmi",
    "clflushopt",
    "clwb",
    "cx16",
    "erms",
    "f16c",
    "fma",
    "fsgsbase",
    "fsrm",
    "gfni",
    "hle",
    "invpcid",
    "lzcnt",
    "mmx",
    "movbe",
    "movdir",
    "pclmulqdq",
    "pku",
    "pni",
    "popcnt",
    "rdpid",
    "rdrand",
    "rdseed",
    "rdtscp",
    "rtm",
    "sha",
    "sse",
    "ssse",
    "tbm",
    "vaes",
    "vpclmulqdq",
    "wbnoinvd",
    "xop",
    "xsave",
];

impl HostCpu {
    /// Reads the first processor of a `/proc/cpuinfo`; none where that has another form.
    #[must_use]
    pub fn parse(cpuinfo: &str) -> Option<Self> {
        let field = |name: &str| {
            let mut lines = cpuinfo.lines().take_while(|line| !line.is_empty());
            let (_, value) = lines.find_map(|line| {
                let (key, value) = line.split_once(':')?;
                (key.trim() == name).then_some((key, value.trim()))
            })?;
            Some(value)
        };
        let number = |name| field(name)?.parse().ok();
        let flags = field("flags")?.split_whitespace();
        let instructions =
            flags.filter(|flag| INSTRUCTIONS.iter().any(|name| flag.starts_with(name)));
        Some(Self {
            vendor: field("vendor_id")?.to_owned(),
            name: field("model name")?.to_owned(),
            model: Some((number("cpu family")?, number("model")?)),
            instructions: instructions.map(str::to_owned).collect(),
        })
    }

    /// What a guest needs of it whose template hides what differs between models.
    #[must_use]
    pub fn behind_a_template(self) -> Self {
        Self {
            model: None,
            instructions: BTreeSet::new(),
            ..self
        }
    }

    /// Why a machine that ran on this processor cannot run on `present`; none where it can.
    #[must_use]
    pub fn differs(&self, present: &Self) -> Option<String> {
        if self.vendor != present.vendor {
            return Some(format!(
                "the processors are of different makers, \"{}\" and \"{}\"",
                self.vendor, present.vendor
            ));
        }
        if self.model.is_some() && self.model != present.model {
            return Some(
                "the processors are of different models; a sandbox made with --cpu-template can move between \
                 the models of its template"
                    .to_owned(),
            );
        }
        let missing: Vec<&str> = self
            .instructions
            .difference(&present.instructions)
            .map(String::as_str)
            .collect();
        (!missing.is_empty()).then(|| {
            format!(
                "its programs may use instructions that this processor lacks: {}",
                missing.join(", ")
            )
        })
    }
}

/// Bytes of a custom template at most.
const CUSTOM_MAX: usize = 64 << 10;
/// What Firecracker reads in one.
const CUSTOM_KEYS: &[&str] = &["kvm_capabilities", "cpuid_modifiers", "msr_modifiers"];

/// What of its processor a guest in Firecracker is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CpuTemplate {
    /// One that Firecracker has.
    Named(NamedCpuTemplate),
    /// Firecracker's custom CPU template: an object with `kvm_capabilities`, `cpuid_modifiers` and
    /// `msr_modifiers`.
    #[schema(value_type = Object)]
    Custom(serde_json::Map<String, serde_json::Value>),
}

/// Templates that Firecracker has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub enum NamedCpuTemplate {
    /// Intel Skylake, Cascade Lake and Ice Lake, as a C3.
    C3,
    /// Intel Skylake, Cascade Lake and Ice Lake, as a T2.
    T2,
    /// Intel Skylake and Cascade Lake, as a T2.
    T2S,
    /// Intel Cascade Lake and Ice Lake, close to AMD Milan.
    T2CL,
    /// AMD Milan, close to Intel.
    T2A,
}

/// What is no CPU template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpuTemplateError {
    /// No such name.
    #[error("\"{0}\" is no CPU template: give C3, T2, T2S, T2CL, T2A, or a file with a custom one")]
    Name(String),
    /// Not an object.
    #[error("a custom CPU template must be a JSON object: {0}")]
    Json(String),
    /// A key that Firecracker does not know.
    #[error(
        "a custom CPU template has no \"{0}\": it may have kvm_capabilities, cpuid_modifiers and msr_modifiers"
    )]
    Key(String),
    /// Too large.
    #[error("this custom CPU template has {0} bytes: the limit is {CUSTOM_MAX}")]
    TooLarge(usize),
}

impl FromStr for NamedCpuTemplate {
    type Err = CpuTemplateError;

    fn from_str(text: &str) -> Result<Self, CpuTemplateError> {
        serde_json::from_value(text.into())
            .map_err(|_| CpuTemplateError::Name(text.chars().take(40).collect()))
    }
}

impl CpuTemplate {
    /// Reads a custom template.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse_custom(text: &str) -> Result<Self, CpuTemplateError> {
        let object = serde_json::from_str(text)
            .map_err(|error| CpuTemplateError::Json(error.to_string()))?;
        let template = Self::Custom(object);
        template.check()?;
        Ok(template)
    }

    /// Refuses what Firecracker would not read.
    ///
    /// # Errors
    /// With what is wrong.
    pub fn check(&self) -> Result<(), CpuTemplateError> {
        let Self::Custom(object) = self else {
            return Ok(());
        };
        if let Some(key) = object
            .keys()
            .find(|key| !CUSTOM_KEYS.contains(&key.as_str()))
        {
            return Err(CpuTemplateError::Key(key.chars().take(40).collect()));
        }
        let length = serde_json::to_string(object).map_or(0, |text| text.len());
        if length > CUSTOM_MAX {
            return Err(CpuTemplateError::TooLarge(length));
        }
        Ok(())
    }

    /// Its name, for people.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Named(named) => format!("{named:?}"),
            Self::Custom(_) => "custom".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpuinfo(model: u32, flags: &str) -> String {
        format!(
            "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 23\nmodel\t\t: {model}\nmodel name\t: EPYC\n\
             flags\t\t: fpu {flags} constant_tsc\n\nprocessor\t: 1\nvendor_id\t: Other\n"
        )
    }

    #[test]
    fn the_first_processor_is_read() {
        let cpu = HostCpu::parse(&cpuinfo(1, "sse4_2 avx2")).unwrap();
        assert_eq!(
            (cpu.vendor.as_str(), cpu.model),
            ("AuthenticAMD", Some((23, 1)))
        );
        let found: Vec<&str> = cpu.instructions.iter().map(String::as_str).collect();
        assert_eq!(found, ["avx2", "sse4_2"]);
        assert_eq!(HostCpu::parse("Processor: ARM\n"), None);
    }

    #[test]
    fn a_machine_moves_only_to_what_has_all_that_it_may_use() {
        let cpu = |model, flags| HostCpu::parse(&cpuinfo(model, flags)).unwrap();
        let saved = cpu(1, "sse4_2 avx2");
        assert_eq!(saved.differs(&saved), None);
        assert_eq!(
            saved.differs(&cpu(1, "sse4_2 avx2 avx512f")),
            None,
            "more is fine"
        );
        let why = saved.differs(&cpu(1, "sse4_2")).unwrap();
        assert!(why.ends_with("lacks: avx2"), "{why}");
        assert!(
            saved
                .differs(&cpu(49, "sse4_2 avx2"))
                .unwrap()
                .contains("models")
        );
        let free = saved.behind_a_template();
        assert_eq!(free.differs(&cpu(49, "")), None);
        let intel = HostCpu {
            vendor: "GenuineIntel".to_owned(),
            ..cpu(1, "sse4_2 avx2")
        };
        assert!(free.differs(&intel).unwrap().contains("GenuineIntel"));
    }

    #[test]
    fn a_custom_template_has_known_keys_only() {
        let good = r#"{"cpuid_modifiers": [{"leaf": "0x1", "subleaf": "0x0", "flags": 0, "modifiers": []}]}"#;
        CpuTemplate::parse_custom(good).unwrap();
        for bad in ["[]", "x", r#"{"cpuid": []}"#] {
            assert!(CpuTemplate::parse_custom(bad).is_err(), "{bad}");
        }
        let long = format!(r#"{{"msr_modifiers": ["{}"]}}"#, "x".repeat(CUSTOM_MAX));
        assert!(matches!(
            CpuTemplate::parse_custom(&long),
            Err(CpuTemplateError::TooLarge(_))
        ));
        assert_eq!("T2CL".parse(), Ok(NamedCpuTemplate::T2CL));
        assert!("t2".parse::<NamedCpuTemplate>().is_err());
    }
}
