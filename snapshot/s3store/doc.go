// Package s3store is the client for archives in S3 and in what speaks its
// protocol.
//
// Owns: the requests, their retries and checksums, and the query parameters of
// an s3:// URL.
// Imports: snapshot/store.
// Invariant: an object appears whole or not at all, also when it was sent in
// parts; its commit time is the user metadata litestream-timestamp.
// Format: https://docs.aws.amazon.com/AmazonS3/latest/API/Welcome.html
package s3store
