//! The three blocks of an IPU that the host sees: the window, the MSI-X generator, the DMA engine.
//!
//! | block | driver | fake |
//! | --- | --- | --- |
//! | window (MMIO function, BAR 2) | [`window::Window`] | any memory |
//! | MSI-X generator | [`msix::DoorbellPage`], [`msix::Doorbells`] | `msix::fake::Page` |
//! | DMA engine | [`dma::Channel`] | `dma::fake::Engine` |
//!
//! The fakes are there in tests and with the feature `fakes`.

pub mod dma;
pub mod msix;
pub mod window;
