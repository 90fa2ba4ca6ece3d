use std::path::Path;
pub fn prove(_b: &crate::Build, _p: &Path) -> Result<(), String> { Ok(()) }
