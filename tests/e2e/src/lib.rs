// SPDX-License-Identifier: Apache-2.0
//! End-to-end stories in network namespaces with real processes: see `tests/stories/`.
