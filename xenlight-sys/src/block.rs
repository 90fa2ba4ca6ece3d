//! Memory for structs whose size differs by release.

use crate::libxl::{XENLIGHT_BLOCK_ALIGN, XENLIGHT_BLOCK_SIZE};

const SIZE: usize = XENLIGHT_BLOCK_SIZE as usize;

/// Room for any one libxl struct of any release: `libxl_domain_config`, `libxl_dominfo`, `libxl_physinfo`.
///
/// Their declarations here are opaque or end early, so a value of the declared type would be too small for libxl to write
/// to. Give libxl [`Block::as_mut_ptr`] instead.
#[repr(C, align(16))]
#[derive(Debug)]
pub struct Block([u8; SIZE]);

const _: () = assert!(align_of::<Block>() == XENLIGHT_BLOCK_ALIGN as usize);

impl Block {
    /// A block of zeros, which is what libxl's `..._init` functions want.
    #[must_use]
    pub fn zeroed() -> Box<Self> {
        Box::new(Self([0; SIZE]))
    }

    /// The block as the struct that it is used for.
    #[must_use]
    pub fn as_mut_ptr<T>(&mut self) -> *mut T {
        const { assert!(size_of::<T>() <= SIZE && align_of::<T>() <= align_of::<Self>()) };
        (&raw mut self.0).cast()
    }

    /// The block as the struct that it is used for, to read.
    #[must_use]
    pub fn as_ptr<T>(&self) -> *const T {
        const { assert!(size_of::<T>() <= SIZE && align_of::<T>() <= align_of::<Self>()) };
        (&raw const self.0).cast()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libxl::{libxl_domain_config, libxl_dominfo};

    #[test]
    fn zeros_aligned_for_every_struct() {
        let mut block = Block::zeroed();
        assert_eq!(block.as_mut_ptr::<libxl_domain_config>().addr() % 16, 0);
        assert_eq!(block.as_ptr::<u8>().addr(), (&raw const *block).addr());
        // SAFETY: zeros are a valid libxl_dominfo: numbers, booleans and a null pointer.
        let info = unsafe { &*block.as_ptr::<libxl_dominfo>() };
        assert!(info.ssid_label.is_null() && !info.running && info.max_memkb == 0);
    }
}
