//! `neap key` and `neap image`: who signs what a card boots, and what it boots.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use comfy_table::{CellAlignment, Table, presets};
use ed25519_dalek::{SigningKey, VerifyingKey};
use neap_loader::image::{Manifest, Verified, hex, key_id};
use neap_loader::keys::{PUBLIC, from_hex};
use serde_json::json;
use xtask::card_image::{self, Recipe};

use crate::args::{BuildOptions, ImageCommand, KeyCommand};
use crate::{flash, print};

/// How the file of a secret key begins.
const SECRET: &str = "neap-secret-key ";

/// Does what `neap key` is asked.
pub fn key(command: &KeyCommand) -> Result<()> {
    match command {
        KeyCommand::New { file } => new_key(file),
        KeyCommand::Show { file } => {
            let key = verifying(file)?;
            print(&format!("{PUBLIC}{}\nid {}", hex(key.as_bytes()), hex(&key_id(&key))))
        }
    }
}

fn new_key(file: &Path) -> Result<()> {
    let key = SigningKey::from_bytes(&rand::random());
    let public = public_of(file);
    // Neither is ever written over: who loses a key loses his cards.
    write_new(file, 0o600, &format!("{SECRET}{}\n", hex(key.as_bytes())))?;
    write_new(&public, 0o644, &format!("{PUBLIC}{}\n", hex(key.verifying_key().as_bytes())))?;
    print(&format!(
        "{} signs images: keep it to yourself, and a copy of it. {} is what cards are given.",
        file.display(),
        public.display()
    ))
}

fn public_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".pub");
    name.into()
}

fn write_new(file: &Path, mode: u32, text: &str) -> Result<()> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(mode).open(file);
    let mut opened = opened.map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => {
            anyhow!("{} is there already, and no key is written over; name another file", file.display())
        }
        _ => anyhow!(error).context(format!("{} can't be made", file.display())),
    })?;
    opened.write_all(text.as_bytes()).with_context(|| format!("{} can't be written", file.display()))
}

fn signing(file: &Path) -> Result<SigningKey> {
    let bytes = key_bytes(file, SECRET)
        .with_context(|| format!("{} is no secret key; `neap key new` makes one", file.display()))?;
    Ok(SigningKey::from_bytes(&bytes))
}

/// A public key, from its own file or its secret's.
pub fn verifying(file: &Path) -> Result<VerifyingKey> {
    if let Ok(bytes) = key_bytes(file, SECRET) {
        return Ok(SigningKey::from_bytes(&bytes).verifying_key());
    }
    let bytes = key_bytes(file, PUBLIC)
        .with_context(|| format!("{} is no key; `neap key new` makes one", file.display()))?;
    VerifyingKey::from_bytes(&bytes).map_err(|_| anyhow!("{} is no point on the curve", file.display()))
}

fn key_bytes(file: &Path, begins: &str) -> Result<[u8; 32]> {
    let text = fs::read_to_string(file).with_context(|| format!("{} can't be read", file.display()))?;
    let digits = text.trim().strip_prefix(begins).context("it begins otherwise")?;
    from_hex(digits).with_context(|| format!("it has {} characters, not 64 hexadecimal digits", digits.len()))
}

/// Does what `neap image` is asked.
pub fn image(command: &ImageCommand) -> Result<()> {
    match command {
        ImageCommand::Build(options) => build(options),
        ImageCommand::Inspect { image, json } => inspect(image, *json),
        ImageCommand::Verify { image, key } => verify(image, key),
        ImageCommand::Disk(options) => flash::disk(options),
    }
}

fn build(options: &BuildOptions) -> Result<()> {
    let BuildOptions { out, key, board, agent, security_version, args, raw, uefi } = options;
    let key = signing(key)?;
    let recipe = Recipe { board, agents: agent, security_version: *security_version, args };
    let image = recipe.build(&key)?;
    let good = Verified::check(&image, &[key.verifying_key()])?;
    fs::write(out, &image).with_context(|| format!("{} can't be written", out.display()))?;
    if let Some(raw) = raw {
        let runtime = good.manifest.parts.first().context("an image has a runtime")?;
        fs::write(raw, good.part(runtime)).with_context(|| format!("{} can't be written", raw.display()))?;
    }
    if let Some(uefi) = uefi {
        let bound = card_image::application(&key.verifying_key(), &image)?;
        fs::write(uefi, bound).with_context(|| format!("{} can't be written", uefi.display()))?;
    }
    print(&format!("{}: {} bytes\n{}", out.display(), image.len(), table(&good.manifest)))
}

/// What an image says of itself; whether that is true, `verify` tells.
fn inspect(file: &Path, as_json: bool) -> Result<()> {
    let bytes = fs::read(file).with_context(|| format!("{} can't be read", file.display()))?;
    let (manifest, key) = Manifest::alleged(&bytes).with_context(|| file.display().to_string())?;
    if as_json {
        return print(&format!(
            "{:#}",
            json!({ "bytes": bytes.len(), "key": hex(&key), "manifest": manifest })
        ));
    }
    print(&format!(
        "{}: {} bytes, signed with key {}\n{}",
        file.display(),
        bytes.len(),
        hex(&key),
        table(&manifest)
    ))
}

fn verify(file: &Path, key: &Path) -> Result<()> {
    let bytes = fs::read(file).with_context(|| format!("{} can't be read", file.display()))?;
    let good = Verified::check(&bytes, &[verifying(key)?]).with_context(|| file.display().to_string())?;
    print(&format!(
        "{} is whole, and signed with {}\n{}",
        file.display(),
        key.display(),
        table(&good.manifest)
    ))
}

fn table(manifest: &Manifest) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["part", "name", "bytes", "SHA-256"]);
    for part in &manifest.parts {
        let kind = serde_json::to_value(part.kind).unwrap_or_default();
        table.add_row([
            kind.as_str().unwrap_or_default().to_owned(),
            part.name.clone(),
            part.bytes.to_string(),
            part.sha256.clone(),
        ]);
    }
    if let Some(column) = table.column_mut(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let Manifest { neap, abi, board, security_version, args, .. } = manifest;
    let args = if args.is_empty() { String::new() } else { format!(", booted with {args}") };
    format!("Neap {neap}, ABI {abi}, board {board}, security version {security_version}{args}\n{table}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        new_key(&file).unwrap();
        assert_eq!(signing(&file).unwrap().verifying_key(), verifying(&public_of(&file)).unwrap());
        assert_eq!(verifying(&file).unwrap(), verifying(&public_of(&file)).unwrap());
        let again = new_key(&file).unwrap_err().to_string();
        assert!(again.contains("no key is written over"), "{again}");
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&file).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn what_is_no_key_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        for text in ["", "neap-secret-key 12", "neap-public-key zz", "neap-secret-key \u{e9}"] {
            fs::write(&file, text).unwrap();
            let error = format!("{:#}", signing(&file).unwrap_err());
            assert!(error.contains("key is no secret key; `neap key new` makes one"), "{error}");
            assert!(verifying(&file).is_err());
        }
    }
}
