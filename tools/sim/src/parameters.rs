//! The numbers, as `parameters.toml` has them.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// The file, as it was when this was built.
const TEXT: &str = include_str!("../parameters.toml");
/// Parameters that may be fitted.
pub const FITTED_MAX: usize = 3;

/// How a number is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The paper states it.
    Published,
    /// Arithmetic on what the paper states.
    Derived,
    /// A command of this project counts it.
    Counted,
    /// Nothing states it.
    Assumed,
    /// Chosen so that one published point comes out.
    Fitted,
}

/// One number.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Parameter {
    /// In ns, unless its source says otherwise.
    pub value: f64,
    /// How it is known.
    pub from: Origin,
    /// Where from.
    pub source: String,
}

/// All numbers by name.
#[derive(Clone, Debug)]
pub struct Parameters(BTreeMap<String, Parameter>);

impl Parameters {
    /// Those that come with the simulator.
    ///
    /// # Panics
    /// Never: a test reads the file.
    #[must_use]
    pub fn usual() -> Self {
        // Every simulated world asks for them: the text is read once.
        static USUAL: LazyLock<Parameters> =
            LazyLock::new(|| Parameters::parse(TEXT).expect("a test reads this very file"));
        USUAL.clone()
    }

    /// From a file's text.
    ///
    /// # Errors
    /// No TOML; a number that can't be a time; more than three that are fitted.
    pub fn parse(text: &str) -> Result<Self> {
        let all: BTreeMap<String, Parameter> =
            toml::from_str(text).context("parameters that can't be read")?;
        for (name, parameter) in &all {
            ensure!(
                parameter.value.is_finite() && parameter.value >= 0.0,
                "the parameter {name} is {}: it takes a number from 0 on",
                parameter.value
            );
            ensure!(!parameter.source.is_empty(), "the parameter {name} has no source");
        }
        let this = Self(all);
        let fitted = this.fitted().len();
        ensure!(fitted <= FITTED_MAX, "{fitted} fitted parameters: at most {FITTED_MAX} may be");
        Ok(this)
    }

    /// A number by its name.
    ///
    /// # Panics
    /// No number has this name: the caller's mistake.
    #[must_use]
    pub fn get(&self, name: &str) -> f64 {
        self.0.get(name).unwrap_or_else(|| panic!("no parameter is called {name}")).value
    }

    /// As [`Parameters::get`], in whole ns.
    #[must_use]
    pub fn ns(&self, name: &str) -> u64 {
        self.get(name) as u64
    }

    /// With another value for one.
    #[must_use]
    pub fn with(mut self, name: &str, value: f64) -> Self {
        if let Some(parameter) = self.0.get_mut(name) {
            parameter.value = value;
        }
        self
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = (&str, &Parameter)> {
        self.0.iter().map(|(name, parameter)| (name.as_str(), parameter))
    }

    /// The names of those that are fitted.
    #[must_use]
    pub fn fitted(&self) -> Vec<&str> {
        self.all().filter(|(_, p)| p.from == Origin::Fitted).map(|(name, _)| name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_can_be_read_and_fits_no_more_than_three() {
        let usual = Parameters::parse(TEXT).unwrap();
        assert_eq!(usual.fitted().len(), FITTED_MAX);
        assert_eq!(usual.ns("mmio_read"), 750);
        assert_eq!(usual.with("mmio_read", 7.0).ns("mmio_read"), 7);
    }

    #[test]
    fn what_is_no_parameter_is_named() {
        let four: String =
            (0..4).map(|i| format!("[a{i}]\nvalue = 1\nfrom = \"fitted\"\nsource = \"x\"\n")).collect();
        for (text, says) in [
            ("[a]\nvalue = -1\nfrom = \"assumed\"\nsource = \"x\"", "the parameter a is -1"),
            ("[a]\nvalue = 1\nfrom = \"assumed\"\nsource = \"\"", "the parameter a has no source"),
            ("[a]\nvalue = 1\nfrom = \"guessed\"\nsource = \"x\"", "can't be read"),
            (&four, "4 fitted parameters"),
        ] {
            let error = format!("{:#}", Parameters::parse(text).unwrap_err());
            assert!(error.contains(says), "{error}");
        }
    }
}
