//! Why nothing is booted.

use core::fmt;

use neap_hal::board::qemu_virt::TreeError;
use neap_loader::acpi::Undescribed;
use neap_loader::handover::Unfit;
use neap_loader::image::Refusal;
use neap_loader::slots::Nothing;
use uefi::Status;

/// Why nothing is booted, with what to do about it.
#[derive(Debug)]
pub enum Trouble {
    /// The disk.
    Disk {
        /// What of it.
        what: &'static str,
        /// What the firmware says.
        status: Status,
    },
    /// A partition that is not there.
    NoPartition {
        /// Its name.
        name: &'static str,
    },
    /// No file of keys.
    NoKeys,
    /// The image that is bound into the loader.
    Bound(Refusal),
    /// Neither slot can be booted.
    Nothing(Nothing),
    /// The machine is described by nothing that is understood.
    NoTree,
    /// Its description by tables.
    Acpi(Undescribed),
    /// Its description.
    Tree(TreeError),
    /// Its memory.
    Unfit(Unfit),
    /// The firmware has no room.
    Memory {
        /// For what.
        what: &'static str,
        /// What it says.
        status: Status,
    },
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk { what, status } => write!(f, "{what}: {status}"),
            Self::NoPartition { name } => {
                write!(f, "the loader's disk has no partition {name}: make one with `neap image disk`")
            }
            Self::NoKeys => f.write_str("\\EFI\\NEAP\\KEYS can't be read, and so no image is trusted"),
            Self::Bound(refusal) => {
                write!(f, "the image that is bound into this application: {refusal}")
            }
            Self::Nothing(nothing) => nothing.fmt(f),
            Self::NoTree => f.write_str(
                "the firmware hands on neither a device tree nor ACPI's tables, so nothing is known of the machine",
            ),
            Self::Acpi(error) => error.fmt(f),
            Self::Tree(error) => error.fmt(f),
            Self::Unfit(unfit) => unfit.fmt(f),
            Self::Memory { what, status } => write!(f, "the firmware has no memory for {what}: {status}"),
        }
    }
}

impl From<TreeError> for Trouble {
    fn from(error: TreeError) -> Self {
        Self::Tree(error)
    }
}

impl From<Unfit> for Trouble {
    fn from(unfit: Unfit) -> Self {
        Self::Unfit(unfit)
    }
}

impl From<Nothing> for Trouble {
    fn from(nothing: Nothing) -> Self {
        Self::Nothing(nothing)
    }
}
