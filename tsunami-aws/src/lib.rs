//! The room for tsunami's provider for Amazon EC2: spot, spot blocks and on-demand machines.
//!
//! It is empty so far. What will stand here implements [`tsunami_core::Provider`] for one account and region
//! on top of `aws-sdk-ec2`, and is the only crate that compiles the AWS SDK.
//!
//! [`tsunami_core::Provider`]: https://docs.rs/tsunami-core/latest/tsunami_core/trait.Provider.html
