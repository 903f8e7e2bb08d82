// One request by Go's client: client PROXY URL; prints the answer's body.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
)

func main() {
	ca, err := os.ReadFile(os.Getenv("CA"))
	must(err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	proxy, err := url.Parse(os.Args[1])
	must(err)
	transport := &http.Transport{Proxy: http.ProxyURL(proxy), TLSClientConfig: &tls.Config{RootCAs: roots}}
	answer, err := (&http.Client{Transport: transport}).Get(os.Args[2])
	must(err)
	body, err := io.ReadAll(answer.Body)
	must(err)
	if answer.StatusCode != 200 {
		fmt.Fprintln(os.Stderr, answer.Status)
		os.Exit(1)
	}
	os.Stdout.Write(body)
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
