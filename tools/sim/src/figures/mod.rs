//! The paper's figures, run.
